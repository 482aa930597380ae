"""`load_policy` trusts nobody: a file is exactly what `save_policy` writes, or a ValueError; cheap, and without code.

Not here: what a good file answers (`test_export.py`).
"""

import hashlib
import json
import os
import pickle
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from sb3_simple_ddpg.export import export_onnx, load_policy, policy_file, save_policy
from tests.side_by_side import CHANNEL_LAST, SMALL_COMBINED, VECTOR
from tests.test_export import trained

Header = dict[str, Any]
#: NumPy's names of safetensors' types, as far as a policy has them.
DTYPES = {"U8": "uint8", "I64": "int64", "F32": "float32", "F64": "float64"}
CODES = {name: code for code, name in DTYPES.items()}
EVERYTHING = spaces.Dict(
    {"discrete": spaces.Discrete(3), "image": CHANNEL_LAST, "multi": spaces.MultiDiscrete([2, 3]), "vector": VECTOR}
)


def split(content: bytes) -> tuple[Header, bytes]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(header: Header | bytes, numbers: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + numbers


def described(content: bytes) -> tuple[Header, dict[str, Any], bytes]:
    header, numbers = split(content)
    return header, json.loads(header["__metadata__"]["description"]), numbers


def sealed(header: Header, description: dict[str, Any] | str, numbers: bytes) -> bytes:
    """A file with a right checksum, where one can be computed: what an attacker would write."""
    text = description if isinstance(description, str) else json.dumps(description)
    digest = hashlib.sha256(text.encode())
    for name in sorted(header.keys() - {"__metadata__"}):
        try:
            entry = header[name]
            dtype = np.dtype(DTYPES[entry["dtype"]])
            begin, end = entry["data_offsets"]
            digest.update(f"{name} {dtype} {tuple(entry['shape'])}".encode() + numbers[begin:end])
        except (TypeError, KeyError, ValueError):
            pass  # it will be refused before the checksum
    return join({**header, "__metadata__": {"description": text, "sha256": digest.hexdigest()}}, numbers)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("plain") / "policy.safetensors"
    save_policy(trained(VECTOR, normalize={}), path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def rich(tmp_path_factory) -> bytes:
    """Every kind of observation, one of them normalized."""
    path = tmp_path_factory.mktemp("rich") / "policy.safetensors"
    normalize = {"norm_obs_keys": ["vector"]}
    save_policy(trained(EVERYTHING, policy="MultiInputPolicy", kwargs=SMALL_COMBINED, normalize=normalize), path)
    return path.read_bytes()


def refused(content: bytes, tmp_path: Path, match: str = "is refused") -> None:
    path = tmp_path / "policy.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=match):
        load_policy(path)


def test_sealing_again_what_was_not_changed_still_loads(rich, tmp_path):
    """The other tests refuse for what they changed, not for how they write it."""
    path = tmp_path / "policy.safetensors"
    path.write_bytes(sealed(*described(rich)))
    assert load_policy(path).action_space.shape == (2,)


def test_tensors_in_another_order_lie_crooked_in_memory_and_load_all_the_same(rich, tmp_path):
    """Numbers of one byte first: those of four and eight then begin anywhere."""
    header, description, numbers = described(rich)
    pieces, position = [], 1
    pieces.append(bytes(1))
    names = sorted(header.keys() - {"__metadata__"}, key=lambda name: header[name]["dtype"], reverse=True)
    for name in names:
        begin, end = header[name]["data_offsets"]
        pieces.append(numbers[begin:end])
        header[name]["data_offsets"] = [position, position + end - begin]
        position += end - begin
    # A byte of padding is none of anybody's: refused. Without it every place is one less.
    refused(sealed(header, description, b"".join(pieces)), tmp_path, "invalid offset")
    for name in names:
        header[name]["data_offsets"] = [place - 1 for place in header[name]["data_offsets"]]
    path = tmp_path / "policy.safetensors"
    path.write_bytes(sealed(header, description, b"".join(pieces[1:])))
    observation = {"discrete": 1, "image": np.zeros((36, 36, 3), np.uint8), "multi": [1, 2], "vector": [0.1, 0.2, 0.3]}
    actions = load_policy(path).predict(observation)[0]
    path.write_bytes(rich)
    np.testing.assert_array_equal(actions, load_policy(path).predict(observation)[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(version=2), "version 2, where 1 is known"),
        (lambda d: d.update(version=True), "version true"),
        (lambda d: d.update(version=1.0), "version 1.0"),
        (lambda d: d.update(format="other"), "'other', version 1"),
        (lambda d: d.pop("format"), "'format'"),
        (lambda d: d.update(activation="os.system"), 'activation "os.system"'),
        (
            lambda d: d.update(activation="torch.nn.modules.activation.ReLU"),
            'activation "torch.nn.modules.activation.ReLU"',
        ),
        (lambda d: d.update(activation=["ReLU"]), "unhashable"),
        (lambda d: d.update(hidden=[16, -8]), "hidden layers"),
        (lambda d: d.update(hidden=[16, 0]), "hidden layers"),
        (lambda d: d.update(hidden=[16, True]), "type bool"),
        (lambda d: d.update(hidden=[16, 8.0]), "type float"),
        (lambda d: d.update(hidden=[2**47]), "size mismatch for mu.0.weight"),
        (lambda d: d.update(hidden=[10**400]), "Overflow"),
        (lambda d: d.update(hidden=[16, 16]), "missing tensor: mu.4.weight"),
        (lambda d: d.update(hidden=[1] * 64), "hidden layers"),
        (lambda d: d.update(hidden="16"), "between instances of 'str'"),
        (lambda d: d.update(action_shape=[2**40] * 8), "action_shape"),
        (lambda d: d.update(action_shape=[1] * 9), "action_shape"),
        (lambda d: d.update(action_dtype="int32"), 'action_dtype "int32"'),
        (lambda d: d.update(extra=1), "extra 1"),
        (lambda d: d.pop("source"), "'source'"),
        (lambda d: d.update(is_dict=1), "is_dict 1, where"),
        (lambda d: d.update(is_dict=False), "too many values"),
        (lambda d: d.update(parts=[]), "no observation"),
        (lambda d: d.update(parts={}), "no observation"),
        (lambda d: d["parts"].append(d["parts"][0]), "two observations of one name"),
        (lambda d: d["parts"].pop(), "unexpected tensors: normalizer, observation.3.high"),
        (lambda d: d["parts"][0].update(kind="Sequence"), "unknown space 'Sequence'"),
        (lambda d: d["parts"][0].update(counts=[2**47]), "numbers of values"),
        (lambda d: d["parts"][2].update(counts=[2**62, 2**62, 2**62, 2**62 + 5]), "numbers of values"),  # 5, mod 2**64
        (lambda d: d["parts"][2].update(counts=[]), "missing|parts|size mismatch"),
        (lambda d: d["parts"][0].update(counts=[]), "index out of range"),
        (lambda d: d["parts"][0].update(counts=[0]), "numbers of values"),
        (lambda d: d["parts"][0].update(counts=[3, 3]), "parts"),
        (lambda d: d["parts"][0].update(dtype="object"), "object"),
        (lambda d: d["parts"][0].update(dtype="V1000000000"), "V1000000000"),
        (lambda d: d["parts"][0].update(cnn=4), "parts|size mismatch"),
        (lambda d: d["parts"][1].update(shape=[2**40, 2**40, 3]), "parts"),
        (lambda d: d["parts"][1].update(shape=[4, 4, 3]), "parts"),
        (lambda d: d["parts"][1].update(shape=[36, 36]), "parts"),
        (lambda d: d["parts"][1].update(shape=[36, 36, 0]), "parts"),
        (lambda d: d["parts"][1].update(transpose=False), "negative dimension|parts|size mismatch"),
        (lambda d: d["parts"][1].update(cnn=2**47), "size mismatch for .*linear"),
        (lambda d: d["parts"][3].update(normalize=False), "unexpected tensors: normalizer, observation.3.mean"),
        (lambda d: d["parts"][3].update(name="../../etc/passwd", cnn=1), "module name"),
        (lambda d: d["parts"][3].update(name="forward"), "already exists"),
    ],
)
def test_descriptions_that_cannot_be_meant_are_refused_with_the_reason(
    change: Callable[[dict[str, Any]], Any], message: str, rich, tmp_path
):
    header, description, numbers = described(rich)
    change(description)
    refused(sealed(header, description, numbers), tmp_path, f"(?s)is refused .*({message})")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h["mu.0.weight"].update(shape=[2**31, 2**31]), "overflow computing"),
        (lambda h: h["mu.0.weight"].update(shape=[3, 16]), "size mismatch for mu.0.weight"),
        (lambda h: h["mu.0.weight"].update(shape=[-16, -3]), "invalid JSON in header"),
        (lambda h: h["mu.0.weight"].update(dtype="F16"), "invalid shape"),
        (lambda h: h["mu.0.weight"].update(dtype="PICKLE"), "unknown variant `PICKLE`"),
        (lambda h: h["mu.0.weight"].update(data_offsets=[0, 192]), "invalid offset"),
        (lambda h: h["mu.0.weight"].update(data_offsets=[0, 2**62]), "invalid offset|invalid shape"),
        (lambda h: h["mu.0.weight"].update(data_offsets=[0]), "invalid JSON in header"),
        (lambda h: h["mu.0.weight"].update(more=1), "described by .*'more'"),
        (lambda h: h.update({"mu.0.weight": [1]}), "has no attribute"),
        (lambda h: h.pop("mu.0.bias"), "invalid offset"),
        (lambda h: h.update({"../../x": h["mu.0.bias"]}), "invalid offset|unexpected tensors"),
    ],
)
def test_headers_that_cannot_be_meant_are_refused_with_the_reason(
    change: Callable[[Header], Any], message: str, plain, tmp_path
):
    header, description, numbers = described(plain)
    change(header)
    refused(sealed(header, description, numbers), tmp_path, f"(?s)is refused .*{message}")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("mu.0.weight", np.nan, "mu.0.weight is empty or holds NaN or infinity"),
        ("mu.4.bias", np.inf, "mu.4.bias is empty or holds NaN or infinity"),
        ("observation.0.mean", np.inf, "mean is empty or holds NaN or infinity"),
        ("observation.0.variance", -1.0, "a variance"),
        ("observation.0.low", np.nan, "low is empty or holds NaN"),
        ("observation.0.low", 2.0, "low values must be less|low"),
        ("action.low", np.inf, "bounds of the actions|low"),
        ("action.low", 5.0, "bounds of the actions|low"),
        ("normalizer", np.nan, "normalizer is empty or holds NaN"),
        ("normalizer", -1.0, "epsilon -1.0"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused_though_the_checksum_is_right(name, value, message, plain, tmp_path):
    header, description, numbers = described(plain)
    begin, _ = header[name]["data_offsets"]
    number = np.array([value], DTYPES[header[name]["dtype"]]).tobytes()
    changed = numbers[:begin] + number + numbers[begin + len(number) :]
    refused(sealed(header, description, changed), tmp_path, message)
    # With the old checksum, that is what is wrong.
    refused(join(header, changed), tmp_path, "the checksum differs")


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    ("kind", "dtype"), [("Box", "float32"), ("Box", "uint8"), ("Box", "int64"), ("MultiBinary", "int8")]
)
def test_observations_without_an_axis_are_refused_when_loaded_not_when_asked(kind, dtype, normalize, tmp_path):
    """Files that are right in all else: each number where it should be, and a right checksum."""

    def content(part: dict[str, Any], tensors: dict[str, np.ndarray]) -> bytes:
        description = {
            "format": policy_file.FORMAT, "version": 1, "parts": [part], "is_dict": False, "hidden": [],
            "activation": "ReLU", "action_shape": [1], "action_dtype": "float32", "source": {},
        }  # fmt: skip
        header: Header = {"__metadata__": {}}
        numbers = b""
        for name, values in tensors.items():
            code = CODES[str(values.dtype)]
            offsets = [len(numbers), len(numbers) + values.nbytes]
            header[name] = {"dtype": code, "shape": list(values.shape), "data_offsets": offsets}
            numbers += values.tobytes()
        return sealed(header, description, numbers)

    def file(shape: tuple[int, ...]) -> bytes:
        part = {
            "name": "observation", "kind": kind, "shape": list(shape), "dtype": dtype, "counts": [],
            "normalize": normalize and kind == "Box", "transpose": False, "divide_by_255": False, "cnn": 0,
        }  # fmt: skip
        tensors = {"action.low": -np.ones(1, np.float32), "action.high": np.ones(1, np.float32)}
        if kind == "Box":
            tensors |= {"observation.0.low": np.zeros(shape, dtype), "observation.0.high": np.ones(shape, dtype)}
        if part["normalize"]:
            tensors |= {"normalizer": np.array([1e-8, 10.0])}
            tensors |= {"observation.0.mean": np.zeros(shape), "observation.0.variance": np.ones(shape)}
        tensors |= {"mu.0.weight": np.ones((1, 1), np.float32), "mu.0.bias": np.zeros(1, np.float32)}
        return content(part, tensors)

    refused(file(()), tmp_path)
    path = tmp_path / "policy.safetensors"
    path.write_bytes(file((1,)))
    # With an axis the same file answers: tanh(1) where nothing is normalized.
    assert load_policy(path).predict(np.ones(1, dtype))[0] == pytest.approx(np.tanh([1.0]), abs=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[" * 500_000, "is refused"),
        (b'{"a":' * 100_000, "is refused"),
        (b"[" * 100_000 + b"]" * 100_000, "is refused"),
        (b'{"__metadata__":{"description":"{}","sha256":""},"__metadata__":{}}', "duplicate|unknown metadata"),
        (b'{"__metadata__":{"description":"{}"}}', "unknown metadata"),
        (b'{"__metadata__":{"description":{},"sha256":""}}', "invalid type: map, expected a string"),
        (b'{"__metadata__":{"description":"' + b"[" * 500_000 + b'","sha256":""}}', "is refused"),
        (b'{"__metadata__":{"description":"{\\"a\\":NaN}","sha256":""}}', "the checksum differs"),
        (b'{"a":' + b"9" * 500_000 + b"}", "is refused"),
        (b"\xff\xfe{}", "is refused"),
        (b"[]", "is refused"),
        (b"{}", "unknown metadata"),
        (b"  ", "is refused"),
    ],
)
def test_headers_that_are_no_strict_json_are_refused(text: bytes, message: str, tmp_path):
    refused(join(text, b""), tmp_path, message)


def test_deep_nesting_in_the_one_free_part_of_the_description_is_refused(plain, tmp_path):
    header, description, numbers = described(plain)
    text = json.dumps(description)[:-1] + ',"x":' + "[" * 200_000 + "]" * 200_000 + "}"
    refused(sealed(header, text, numbers), tmp_path)


def test_other_kinds_of_file_are_refused(tmp_path):
    model = trained(VECTOR)
    model.save(tmp_path / "model.zip")
    refused((tmp_path / "model.zip").read_bytes(), tmp_path, "bytes of header")
    export_onnx(model, tmp_path / "policy.onnx")
    refused((tmp_path / "policy.onnx").read_bytes(), tmp_path)
    for content in (b"", b"1234567", bytes(8), b"\xff" * 8, struct.pack("<Q", 2**63), pickle.dumps({"a": 1})):
        refused(content, tmp_path)
    with pytest.raises(ValueError, match="is not a file: pass what save_policy wrote"):
        load_policy(tmp_path)
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    with pytest.raises(ValueError, match="is not a file"):
        load_policy(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError):
        load_policy(tmp_path / "nothing")


def test_a_header_of_a_terabyte_and_a_file_with_a_hole_of_one_are_refused_at_once(plain, tmp_path):
    header, description, _ = described(plain)
    path = tmp_path / "policy.safetensors"
    start = time.perf_counter()
    path.write_bytes(struct.pack("<Q", 2**40) + b"{}")
    os.truncate(path, 2**40)  # no blocks on the disk
    with pytest.raises(ValueError, match="bytes of header"):
        load_policy(path)
    path.write_bytes(sealed(header, description, b""))
    os.truncate(path, 2**40)
    with pytest.raises(ValueError, match="not fully covered"):
        load_policy(path)
    header["mu.0.weight"] = {"dtype": "F32", "shape": [2**38, 1], "data_offsets": [0, 2**40]}  # the file pays for it
    path.write_bytes(sealed({"mu.0.weight": header["mu.0.weight"]}, description, b""))
    os.truncate(path, path.stat().st_size + 2**40)
    with pytest.raises(ValueError, match="is refused"):
        load_policy(path)
    assert time.perf_counter() - start < 1


def mutations(original: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Flipped bytes, pieces cut out or doubled, other header lengths, and other JSON with a right checksum."""
    rng = np.random.default_rng(seed)
    header_end = 8 + struct.unpack("<Q", original[:8])[0]
    wild = [
        None,
        True,
        -1,
        0,
        1,
        3.5,
        2**31,
        2**63,
        10**30,
        "",
        "x",
        "../..",
        "F64",
        "\x00",
        [],
        {},
        [[]],
        [0],
        [2**40] * 4,
    ]
    for number in range(count):
        kind = number % 5
        content = bytearray(original)
        if kind == 0:  # anywhere, in the numbers too
            for place in rng.integers(len(content), size=rng.integers(1, 6)):
                content[place] ^= 1 << rng.integers(8)
        elif kind == 1:  # in the header
            for place in rng.integers(header_end, size=rng.integers(1, 4)):
                content[place] = rng.integers(256)
        elif kind == 2:
            begin, end = sorted(rng.integers(len(content), size=2))
            content = (
                content[:end] if number % 2 else content[:begin] + content[end:] + content[begin:end] * (number % 3)
            )
        else:
            header, description, numbers = described(original)
            target: Any = header if kind == 3 else description
            for _ in range(8):  # walk to some leaf
                keys = list(target) if isinstance(target, dict) else list(range(len(target)))
                key = keys[rng.integers(len(keys))]
                if not isinstance(target[key], dict | list) or not target[key] or rng.random() < 0.1:
                    break
                target = target[key]
            value = wild[rng.integers(len(wild))]
            if isinstance(target, dict) and rng.random() < 0.2:
                target.pop(key)
            else:
                target[key] = value
            content = bytearray(sealed(header, description, numbers))
        yield bytes(content)


PROBE = """
import resource, sys, time
from pathlib import Path
import numpy as np
from sb3_simple_ddpg.export import load_policy

ran = []
# What running code out of a file would need.
needed = ("compile", "exec", "import", "pickle", "marshal", "subprocess", "os", "socket", "ctypes")
def listen(event, arguments):
    if event.split(".")[0] in needed:
        ran.append(event)

folder = Path(sys.argv[1])
files = sorted(folder.iterdir())
good = load_policy(files[0])  # and whatever is imported late
sys.addaudithook(listen)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
slowest, refused, loaded = 0.0, 0, 0
for path in files:
    start = time.perf_counter()
    try:
        policy = load_policy(path)
        loaded += 1
    except ValueError:
        refused += 1
    slowest = max(slowest, time.perf_counter() - start)
mebibytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print(refused, loaded, slowest, mebibytes, ",".join(sorted(set(ran))) or "nothing")
"""


def test_of_1200_mutated_files_each_is_refused_or_loads_and_none_runs_code_or_is_dear(plain, rich, tmp_path):
    """Anything but a ValueError ends the process, and the test; those that load have their description's spaces."""
    (tmp_path / "0000").write_bytes(plain)
    number = 0
    for original, seed in ((plain, 1), (rich, 2)):
        for content in mutations(original, 600, seed):
            number += 1
            (tmp_path / f"{number:04}").write_bytes(content)
    assert number == 1200
    command = [sys.executable, "-c", PROBE, str(tmp_path)]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 0, result.stderr
    refused_count, loaded, slowest, mebibytes, ran = result.stdout.split()
    assert int(refused_count) + int(loaded) == 1201
    assert int(refused_count) > 900
    assert int(loaded) >= 1  # the first, and those changed in what is only for people
    assert float(slowest) < 1
    assert float(mebibytes) < 200
    assert ran == "nothing"


class Bomb:
    """Its pickle, opened, leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_that_runs_code_runs_none_here(plain, tmp_path):
    bomb = pickle.dumps(Bomb(tmp_path / "ran"))
    header, description, numbers = described(plain)
    refused(bomb, tmp_path)
    refused(join(header, bomb), tmp_path)
    refused(sealed(header, {**description, "source": bomb.decode("latin-1")}, numbers), tmp_path)
    with zipfile.ZipFile(tmp_path / "policy.zip", "w") as archive:
        archive.writestr("data.pkl", bomb)
    refused((tmp_path / "policy.zip").read_bytes(), tmp_path)
    assert not (tmp_path / "ran").exists()
    pickle.loads(bomb)  # it is a live one
    assert (tmp_path / "ran").exists()


def test_a_file_that_loads_after_a_change_says_only_other_things_about_its_source(plain, tmp_path):
    header, description, numbers = described(plain)
    path = tmp_path / "policy.safetensors"
    path.write_bytes(plain)
    expected = load_policy(path).predict(np.ones(3, np.float32))[0]
    path.write_bytes(sealed(header, {**description, "source": {"algorithm": "mine"}}, numbers))
    policy = load_policy(path)
    assert policy.source == {"algorithm": "mine"}
    np.testing.assert_array_equal(policy.predict(np.ones(3, np.float32))[0], expected)
