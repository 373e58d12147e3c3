"""`python -m local_hub FOLDER --port 5000`: serve a folder until Ctrl-C."""

import argparse
import threading
from pathlib import Path

from . import local_hub

parser = argparse.ArgumentParser(prog="local_hub", description="A local stand-in for the Hugging Face Hub")
parser.add_argument("folder", type=Path)
parser.add_argument("--port", type=int, default=5000)
options = parser.parse_args()
with local_hub(options.folder, options.port) as address:
    print(f"HF_ENDPOINT={address} HF_HUB_DISABLE_XET=1 HF_TOKEN=hf_x", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
