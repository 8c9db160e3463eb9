"""What the documents show is what the scripts make."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_readmes_table_of_macs_is_what_its_script_prints() -> None:
    script = ROOT / "docs" / "make_mac_table.py"
    table = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True).stdout.strip()
    assert table in (ROOT / "README.md").read_text(encoding="utf-8")
