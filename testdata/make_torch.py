"""Writes small files with torch.save, good and bad ones, into `torch/`. Needs torch (see ../interop/requirements.txt)."""

import collections
import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent / "torch"


class Runs:
    """An object that makes a careless reader call something."""

    def __init__(self, callee, *arguments):
        self.call = callee, arguments

    def __reduce__(self):
        return self.call


def good():
    """Every dtype, views into one storage, a parameter, objects that are no tensors, containers in containers."""
    numbers = torch.arange(-6, 6)
    dtypes = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 uint16 uint32 uint64 float8_e4m3fn float8_e5m2"
    state = collections.OrderedDict((name, numbers.abs().to(getattr(torch, name)).view(3, 4)) for name in dtypes.split())
    base = torch.arange(24, dtype=torch.int16).view(4, 6)
    state["rows"] = base[1:3]
    state["column_of_one_row"] = base[2:3, 1:4]
    state["scalar"] = torch.tensor(7, dtype=torch.int32)
    state["empty"] = torch.empty(0, 5)
    state["parameter"] = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16))
    state["object"] = io.BytesIO(b"not a tensor")
    state["nothing"] = None
    state["step"] = 10**12
    state["rate"] = 0.5
    state["inner"] = {"list": [torch.zeros(3, dtype=torch.uint8), "text"], 5: torch.ones(1, dtype=torch.uint8)}
    state._metadata = {"version": 1}
    torch.save(state, HERE / "good.pth")
    torch.save(dict(state), HERE / "protocol4.pth", pickle_protocol=4)
    flat = {name: tensor for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}
    flat |= {"inner.list.0": state["inner"]["list"][0], "inner.5": state["inner"][5]}
    listing = {}
    for name, tensor in flat.items():
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist() if tensor.numel() else []
        listing[name] = [str(tensor.dtype).removeprefix("torch."), list(tensor.shape), bytes(raw).hex()]
    (HERE / "good.json").write_text(json.dumps(listing, indent=0) + "\n")


def bad():
    torch.save({"weight": torch.zeros(3, 4).T}, HERE / "transposed.pth")
    torch.save({"weight": torch.zeros(2)}, HERE / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save({"weight": torch.zeros(2)}, HERE / "plain.pth")
    with zipfile.ZipFile(HERE / "plain.pth") as plain, zipfile.ZipFile(HERE / "deflated.pth", "w", zipfile.ZIP_DEFLATED) as out:
        for entry in plain.infolist():
            out.writestr(entry.filename, plain.read(entry))
    for name, value in {
        "system": Runs(os.system, "echo harm"),
        "eval": Runs(eval, "1"),
        "exec": Runs(exec, "1"),
        "getattr": Runs(getattr, "text", "upper"),
        "load": Runs(pickle.loads, b""),
        "class": Runs(collections.Counter, "harm"),
    }.items():
        torch.save({"a": torch.zeros(1), "weight": value}, HERE / f"runs-{name}.pth")


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    torch.manual_seed(0)
    good()
    bad()
