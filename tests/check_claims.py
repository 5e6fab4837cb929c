"""Exit with status 1 unless every claim in a claims.json holds: `python tests/check_claims.py FILE`."""

import json
import sys
from pathlib import Path

claims = json.loads(Path(sys.argv[1]).read_text())
failed = [claim for claim in claims if not claim["passed"]]
for claim in failed:
    print(f"failed: {claim['id']}: measured {claim['measured']}, allowed {claim['threshold']}")
print(f"{len(claims) - len(failed)} of {len(claims)} claims hold")
sys.exit(not claims or bool(failed))
