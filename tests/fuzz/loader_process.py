"""Loads model folders as a rank does, each in a process forked for it, with little memory and little time.

Reads a folder's path per line from its standard input, and answers with a line of JSON: `outcome` is "loaded",
"refused" (an error of ours, which is what a broken folder must lead to) or a fault: "raised", "memory", "time" or
"crashed". Forking makes it quick: torch is imported once.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from models.checkpoint import load_decoder
from models.config import ModelConfig
from models.errors import ModelError
from models.layers.attention import CausalAttention
from pipeline.tokenization import Detokenizer, Tokenizer, TokenizerError

#: Beyond what this process has already; the folders hold less than 1 MB.
MORE_BYTES = 1024**3
SECONDS = 20.0


def load(folder: Path) -> None:
    """Everything that control, a group and its ranks do with a folder before the first request, and a little more."""
    config = ModelConfig.from_pretrained(folder)
    assert config.context_length < 2**31
    tokenizer = Tokenizer.load(folder)
    ids = tokenizer.encode("The quick brown fox — 価格 <|im_start|>", add_special_tokens=True)
    detokenizer = Detokenizer(tokenizer)
    text = "".join(detokenizer.append(token_id) for token_id in [*ids, 0, 5, 2**31]) + detokenizer.flush()
    text.encode()
    tokenizer.surely_exceeds("word " * 10_000, 100)
    decoder = load_decoder(folder, config)
    positions = torch.arange(3)
    tokens = positions % config.vocab_size
    decoder.logits(decoder(tokens, positions, CausalAttention(1, 3)))


def answer(folder: Path) -> dict[str, Any]:
    """The forked process."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MORE_BYTES, size + MORE_BYTES))
    try:
        load(folder)
    except (ModelError, TokenizerError) as error:
        return {"outcome": "refused", "detail": f"{type(error).__name__}: {str(error)[:5000]}"}
    except MemoryError:
        return {"outcome": "memory", "detail": traceback.format_exc()[-3000:]}
    except BaseException:  # noqa: BLE001 - that is what is looked for
        return {"outcome": "raised", "detail": traceback.format_exc()[-3000:]}
    return {"outcome": "loaded", "detail": ""}


def main() -> None:
    torch.set_num_threads(1)
    # Its pool of threads does not survive a fork; each process makes its own.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    for line in sys.stdin:
        print(json.dumps(answer_apart(Path(line.rstrip("\n")))), flush=True)


def answer_apart(folder: Path) -> dict[str, Any]:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            os.close(read)
            os.dup2(2, 1)  # whatever it prints is no answer
            os.write(write, json.dumps(answer(folder)).encode())
        os._exit(0)
    os.close(write)
    data = b""
    limit = time.monotonic() + SECONDS
    while select.select([read], [], [], max(0.0, limit - time.monotonic()))[0]:
        piece = os.read(read, 65536)
        if not piece:
            break
        data += piece
    else:
        os.kill(child, signal.SIGKILL)
    os.close(read)
    _, status = os.waitpid(child, 0)
    if data:
        found: dict[str, Any] = json.loads(data)
        return found
    is_late = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    return {"outcome": "time" if is_late else "crashed", "detail": f"status {status}"}


if __name__ == "__main__":
    main()
