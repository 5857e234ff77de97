"""`wsigen view` from the command line."""

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
from click.testing import CliRunner

from wsigen.cli.main import main


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing.svs"], "no such file"),
        (["{slide}", "--overlay", "nothing.geojson"], "nothing.geojson"),
        (["{mask}", "--model", "nothing"], "no model"),
        (["{mask}", "--model", "{model}", "--style", "nothing"], "nothing"),
        (["{mask}", "--model", "{model}", "--port", "{taken}"], "--port"),
        (["{slide}", "--overlay", "{outlines}", "--origin", "bounds"], "states no bounds"),
    ],
)
def test_bad_input_is_one_line_and_code_2(arguments, said, rendered, demo_mask, tiny_model, tmp_path):
    outlines = tmp_path / "a.geojson"
    outlines.write_text('{"type": "Polygon", "coordinates": [[[1, 1], [5, 1], [5, 5]]]}')
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        names = {"slide": rendered[0], "mask": demo_mask, "model": tiny_model, "taken": taken.getsockname()[1]}
        names["outlines"] = outlines
        result = CliRunner().invoke(main, ["view", "--no-browser", *(part.format(**names) for part in arguments)])
    assert result.exit_code == 2, result.output
    lines = [line for line in result.output.splitlines() if line.strip()]
    assert len(lines) == 1 and said in lines[0], result.output


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_it_serves_until_ctrl_c(rendered):
    process = subprocess.Popen(
        [sys.executable, "-m", "wsigen", "view", "--no-browser", str(rendered[0])], stdout=subprocess.PIPE, text=True
    )
    try:
        address = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())[0]
        with urllib.request.urlopen(address, timeout=20) as answer:
            assert b"openseadragon" in answer.read()
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=20)
        assert process.returncode == 0 and rest == "stopped\n"
    finally:
        process.kill()
