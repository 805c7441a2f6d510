"""Vectors of a real model, through the gateway: do they mean anything, and are they the model's own?

    python -m tests.bench.serving.embeddings --vllm ENVIRONMENT --model FOLDER [--write]

The stanza of the catalogue's embeddings model, with all-MiniLM-L6-v2 in its place, is served as its unit would be,
behind the gateway that follows from it. What comes is compared with the same model computed in numpy.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from citadel import fetch, gateway_config, safetensors
from citadel.sources import source_of
from tests.bench.serving.report import here, write
from tests.bench.serving.servers import Server, running
from tests.bench.serving.units import Unit, committed, unit

NAME = "all-minilm-l6-v2"
PORT, GATEWAY = 21488, 21489
INPUTS = 100
MEANINGS = (  # a sentence, another that says the same, and one that only sounds like it or shares its words
    ("The cat sleeps on the sofa.", "A kitten is napping on the couch.", "The sofa was delivered on Monday."),
    (
        "How do I reset my password?",
        "I forgot my login and need a new one.",
        "Passwords should be twelve characters long.",
    ),
    ("The bank raised its interest rates.", "Borrowing money has become dearer.", "We sat on the bank of the river."),
    ("She plays the violin in an orchestra.", "She is a musician who performs with strings.", "She plays tennis."),
    ("The flight was delayed by fog.", "Bad visibility made the plane late.", "The fog machine works well on stage."),
    ("Plants turn sunlight into sugar.", "Photosynthesis makes food from light.", "The power plants burn coal."),
    ("The server ran out of memory.", "There was no RAM left on the machine.", "The waiter remembered our order."),
    ("He was fired from his job.", "The company dismissed him.", "He lit a fire in the stove."),
    ("Water boils at a hundred degrees.", "The boiling point of water is 100 °C.", "It is a hundred miles to the sea."),
    ("The patient has a high temperature.", "The sick man is running a fever.", "Be patient, the oven is heating up."),
    ("They signed the contract yesterday.", "The agreement was concluded the day before.", "He contracted a cold."),
    ("The roads are icy this morning.", "It is slippery to drive today.", "This morning we had ice cream."),
)


def reference(folder: Path, ids: list[int]) -> NDArray[np.float32]:
    """BERT's forward pass in 32 bits, the mean over the tokens, of length one."""
    path = folder / "model.safetensors"
    raw, start = path.read_bytes(), safetensors.data_start(path)
    header = safetensors.read_header(path)
    config = json.loads((folder / "config.json").read_text())
    heads = config["num_attention_heads"]

    def weight(name: str) -> Any:
        begin, end = header[name]["data_offsets"]
        return np.frombuffer(raw[start + begin : start + end], np.float32).reshape(header[name]["shape"])

    def dense(values: Any, name: str) -> Any:
        return values @ weight(f"{name}.weight").T + weight(f"{name}.bias")

    def norm(values: Any, name: str) -> Any:
        values = values - values.mean(-1, keepdims=True)
        values = values / np.sqrt((values**2).mean(-1, keepdims=True) + config["layer_norm_eps"])
        return values * weight(f"{name}.weight") + weight(f"{name}.bias")

    def gelu(values: Any) -> Any:
        return values * 0.5 * (1 + np.vectorize(math.erf)(values / np.sqrt(2)))

    part = "embeddings.{}_embeddings.weight".format
    state = weight(part("word"))[ids] + weight(part("position"))[: len(ids)] + weight(part("token_type"))[0]
    state = norm(state, "embeddings.LayerNorm")
    for number in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{number}"
        query, key, value = (
            dense(state, f"{layer}.attention.self.{name}").reshape(len(ids), heads, -1).swapaxes(0, 1)
            for name in ("query", "key", "value")
        )
        scores = np.exp(query @ key.swapaxes(1, 2) / np.sqrt(query.shape[-1]))
        seen = (scores / scores.sum(-1, keepdims=True) @ value).swapaxes(0, 1).reshape(len(ids), -1)
        state = norm(state + dense(seen, f"{layer}.attention.output.dense"), f"{layer}.attention.output.LayerNorm")
        inner = gelu(dense(state, f"{layer}.intermediate.dense"))
        state = norm(state + dense(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
    mean = state.mean(0)
    return np.asarray(mean / np.linalg.norm(mean), dtype=np.float32)


def post(port: int, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    found = json.loads(answer.read())
    connection.close()
    return answer.status, found


def vectors(texts: list[str], model: str = "text-embedding-ada-002") -> NDArray[np.float32]:
    status, found = post(GATEWAY, "/v1/embeddings", {"model": model, "input": texts})
    if status != 200:
        raise RuntimeError(f"{status}: {found}")
    return np.array([one["embedding"] for one in found["data"]], dtype=np.float32)


def served(environment: Path, model: Path, work: Path) -> Unit:
    """The catalogue's stanza, but for the weights and what follows from their shape."""
    place = {"kind": "directory", "path": str(model)}
    fetch.fetch(NAME, source_of(NAME, "", "1", place), "1", work / "models")
    own = committed()["citadel_models"]["nomic-embed-text"]
    stanza = {
        **own,
        **{"repository": f"sentence-transformers/{NAME}", "revision": "1", "source": place, "port": PORT},
        **{"context": 256, "batched_tokens": 2048, "vector_size": 384, "engine": {"dtype": own["engine"]["dtype"]}},
    }
    return unit("embeddings", NAME, stanza, environment, work)


def gateway(one: Unit, work: Path) -> Server:
    told = {
        "profile": "development",
        "ports": {"api": GATEWAY, "management": GATEWAY + 1, "health": GATEWAY + 2, "export": GATEWAY + 3},
        **{"side_address": "127.0.0.1", "tls": {}, "cors_origins": [], "keys_file": f"{work}/keys.json"},
        **{"load_times": f"{work}/load-times", "logs": str(work)},
        "limits": yaml.safe_load((Path(__file__).resolve().parents[3] / "gateway/example.yml").read_text())["limits"],
    }
    path = work / "gateway.yml"
    path.write_text(yaml.safe_dump(gateway_config.configuration([one.model], [one.instance], told, {})))
    command = (sys.executable, "-m", "citadel_gateway", "serve", "--config", str(path))
    return Server("gateway", (*command, "--bind", f"127.0.0.1:{GATEWAY}"), GATEWAY, NAME)


def judged(model: Path) -> tuple[list[str], list[str]]:
    """What was found, and what of it is wrong."""
    found, wrong = [], []

    def tell(good: bool, text: str) -> None:
        found.append(text)
        print(text, flush=True)
        if not good:
            wrong.append(text)

    texts = [text for meaning in MEANINGS for text in meaning]
    got = vectors(texts)
    first, same, other = got[0::3], got[1::3], got[2::3]
    near, far = (first * same).sum(1), (first * other).sum(1)
    right = int((near > far).sum())
    tell(
        right == len(MEANINGS),
        f"Of {len(MEANINGS)} sentences {right} are nearer to a paraphrase ({near.mean():.2f} in the mean) than to a "
        f"sentence that shares their words ({far.mean():.2f}).",
    )
    lengths = np.linalg.norm(got, axis=1)
    tell(bool(np.abs(lengths - 1).max() < 1e-3), f"Lengths are {lengths.min():.4f} to {lengths.max():.4f}.")
    expected = [reference(model, post(PORT, "/tokenize", {"model": NAME, "prompt": one})[1]["tokens"]) for one in texts]
    agreement = (got * np.stack(expected)).sum(1).min()
    tell(
        bool(agreement > 0.99),
        f"The cosine with the same model computed in numpy with 32 bits is {agreement:.5f} at least.",
    )
    many = (texts * 3)[:INPUTS]
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        batch = vectors(many)
        seconds.append(time.perf_counter() - began)
    alone = (batch[: len(texts)] * got).sum(1).min()
    tell(
        bool(alone > 0.999),
        f"{INPUTS} texts in one request take {statistics.median(seconds):.2f} s, and their vectors are those of a "
        f"smaller request (cosine {alone:.5f} at least).",
    )
    status, answer = post(GATEWAY, "/v1/embeddings", {"model": NAME, "input": [*many, "one more"]})
    tell(status == 422, f"{INPUTS + 1} are answered {status}: {answer['error']['message']}")
    ones = []
    for text in texts[:20]:
        began = time.perf_counter()
        vectors([text])
        ones.append(time.perf_counter() - began)
    tell(True, f"One text takes {1000 * statistics.median(ones):.0f} ms (aim: 400 ms).")
    return found, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vllm", type=Path, required=True, help="environment with vLLM")
    parser.add_argument("--model", type=Path, required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="bench-embeddings-"))
    try:
        one = served(options.vllm, options.model, work)
        with running(one.server, work / "vllm.log") as vllm, running(gateway(one, work), work / "gateway.log"):
            found, wrong = judged(options.model)
            memory = f"vLLM was ready after {vllm.seconds:.0f} s and has {vllm.memory() / 2**30:.2f} GiB in use."
    finally:
        shutil.rmtree(work)
    print(memory)
    if options.write:
        write("embeddings", "\n".join([f"{here()}.", "", *(f"- {line}" for line in [*found, memory])]))
    for line in wrong:
        print(f"wrong: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
