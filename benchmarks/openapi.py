"""The server against its own OpenAPI document: `python benchmarks/openapi.py [--examples N] [OPTION …]`

schemathesis, which is installed apart (`pip install schemathesis`), makes requests of the document, what it allows and
what it does not, and holds the answers against it: no status of the server's own but a 503 that is documented, and all
other checks, but for two. A document does not say all that is refused (a prompt that is too long, a tool that is named
twice), and "1" is taken for 1. Further options go to `schemathesis run`. The built-in model; answers are short.
"""

import argparse
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import servers
from http_client import HOST

KEY = "key-of-the-fuzzer"
EXCLUDED = ("positive_data_acceptance", "negative_data_rejection")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=100, help="of each operation")
    parser.add_argument("--log", type=Path, help="where the server's log goes")
    options, rest = parser.parse_known_args()
    if find_spec("schemathesis") is None:
        raise SystemExit("schemathesis is not installed: pip install schemathesis")
    with tempfile.TemporaryDirectory() as temporary:
        folder = servers.demo_with_tools(Path(temporary) / "demo")
        with servers.ours(folder, "--max-tokens", "8", "--api-key", KEY, log=options.log) as server:
            command = [sys.executable, "-m", "schemathesis.cli", "run", f"http://{HOST}:{server.port}/openapi.json"]
            command += ["--checks", "all", "--exclude-checks", ",".join(EXCLUDED), "--continue-on-failure"]
            command += ["--header", f"Authorization: Bearer {KEY}", "--max-examples", str(options.examples)]
            command += ["--generation-database", "none", "--request-timeout", "60", *rest]
            status = subprocess.run(command, cwd=temporary).returncode
            ended = server.stop()
    sys.exit(status or ended)


if __name__ == "__main__":
    main()
