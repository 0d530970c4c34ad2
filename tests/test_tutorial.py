"""Every command of docs/tutorial.md, in its order, with the file that it shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_readme import make_data

from runtime.tuning.best import Best

TEXT = (Path(__file__).parent.parent / "docs" / "tutorial.md").read_text()
COMMANDS = re.findall(r"^python .*$", "\n".join(re.findall(r"^```sh\n(.*?)^```", TEXT, re.M | re.S)), re.M)


@pytest.mark.slow
def test_a_model_of_ones_own_is_deployed(tmp_path: Path) -> None:
    make_data(tmp_path)
    (tmp_path / "nets.py").write_text(re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S)[0])
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    assert len(COMMANDS) == 7
    said = ""
    for command in COMMANDS:
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        if "--dry-run" in command:
            assert not (tmp_path / "artifacts").exists()
        said += done.stdout
    assert "fastest verified variant" in said
    assert re.search(r"^my-images/test/cats/0.jpg: (cats|dogs) \d", said, re.M), "the bundle names classes"
    assert (tmp_path / "artifacts" / "reports" / "report.html").is_file()
    found = Best.load(tmp_path / "artifacts" / "Net" / "best.json")
    assert found.faster is not None, "PyTorch eager ran beside it, though the model is code of one's own"
    assert found.command.startswith("python -m runtime tune nets.py:Net ")
