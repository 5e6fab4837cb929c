# Where `kernel_objects` come from: one object library for each instruction set, chosen when the binary is loaded.
set(MESASCOPE_OPTIMISATION -O3 CACHE STRING "optimisation of the kernels")

# GCC would write every loop of a product twice, for strides of one and others, and choose before each tile
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  set(kernel_loops -fno-version-loops-for-strides)
endif()

function(add_kernels name)
  add_library(kernels_${name} OBJECT ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/kernels.cpp)
  target_compile_definitions(kernels_${name} PRIVATE MESASCOPE_ISA=mesascope_${name})
  target_compile_options(kernels_${name} PRIVATE ${MESASCOPE_OPTIMISATION} -fno-math-errno -fno-trapping-math -ffp-contract=fast
                                                 ${kernel_loops} -fvisibility=hidden -Wno-psabi ${ARGN})
endfunction()

add_kernels(baseline)
set(kernel_objects $<TARGET_OBJECTS:kernels_baseline>)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  add_kernels(avx2 -mavx2 -mfma)
  add_kernels(avx512 -mavx2 -mfma -mavx512f -mavx512vl -mavx512dq -mavx512bw -mprefer-vector-width=512)
  list(APPEND kernel_objects $<TARGET_OBJECTS:kernels_avx2> $<TARGET_OBJECTS:kernels_avx512>)
  add_compile_definitions(MESASCOPE_X86)
endif()
