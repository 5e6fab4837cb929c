"use strict";
const pointer = matchMedia("(hover: hover)").matches;

// Every figure starts as a picture; it stays interactive only when all of its panels could be drawn.
async function draw(figure) {
  figure.classList.add("drawn");
  try {
    for (const plot of figure.querySelectorAll(".plot")) {
      const { data, layout } = JSON.parse(document.getElementById(plot.dataset.source).textContent);
      await Plotly.newPlot(plot, data, layout, {
        responsive: true,
        displaylogo: false,
        displayModeBar: pointer ? "hover" : false,
        modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
        toImageButtonOptions: { filename: figure.dataset.figure, scale: 2 },
      });
    }
  } catch (error) {
    figure.classList.remove("drawn");
    throw error;
  }
}

document.querySelectorAll("figure[data-figure]").forEach(draw);
