"""Networks for tests, as text: layers by hand, and random nets."""

from __future__ import annotations

from hypothesis import strategies as st

from ionn.model.network import Network


def layer(kind: str, name: str, bottoms: str = "", tops: str | None = None, params: str = "") -> str:
    """A layer in prototxt; its top is its name unless given otherwise."""
    blobs = [f'bottom: "{blob}"' for blob in bottoms.split()]
    blobs += [f'top: "{blob}"' for blob in (name if tops is None else tops).split()]
    return f'layer {{ name: "{name}" type: "{kind}" {" ".join(blobs)} {params} }}\n'


def conv(name: str, bottom: str, outputs: int = 4, more: str = "", params: str = "") -> str:
    return layer("Convolution", name, bottom, None, f"convolution_param {{ num_output: {outputs} {more} }} {params}")


def relu(blob: str) -> str:
    return layer("ReLU", f"relu_{blob}", blob, blob)


DATA = layer("Input", "data", params="input_param { shape { dim: 1 dim: 4 dim: 8 dim: 8 } }")
ONE = "kernel_size: 1"


@st.composite
def random_nets(draw: st.DrawFn) -> str:
    """Nets that Caffe accepts: any wiring of convolutions, in-place layers, sums, slices, masks and dead ends."""
    text = DATA
    used: dict[str, bool] = {"data": False}  # blob -> whether a layer consumes it

    def pick(blobs: list[str]) -> str:
        blob = draw(st.sampled_from(blobs[-4:]))
        used[blob] = True
        return blob

    for index in range(draw(st.integers(0, 14))):
        name, blobs = f"l{index}", list(used)
        unused = [blob for blob in blobs if not used[blob]]
        kind = draw(st.sampled_from(["conv", "conv", "in place", "sum", "concat", "slice", "pool", "silence"]))
        tops = [name]
        if kind == "in place" and unused:
            # In place on a blob that nothing else consumes: it is a new version of the blob, not consumed yet.
            blob = draw(st.sampled_from(unused))
            text += layer("ReLU", name, blob, blob)
            continue
        if kind == "silence":
            text += layer("Silence", name, pick(blobs), "")
            continue
        if kind in ("sum", "concat"):
            bottoms = [pick(blobs) for _ in range(draw(st.integers(2, 3)))]
            text += layer("Concat", f"{name}_all", " ".join(bottoms)) if kind == "concat" else ""
            text += conv(name, f"{name}_all", 4, ONE) if kind == "concat" else layer("Eltwise", name, " ".join(bottoms))
        elif kind == "slice":
            tops = [f"{name}_1", f"{name}_2"]
            text += layer("Slice", f"{name}_cut", pick(blobs), f"{name}_left {name}_right")
            text += conv(tops[0], f"{name}_left", 4, ONE) + conv(tops[1], f"{name}_right", 4, ONE)
        elif kind == "pool":
            tops = [name, f"{name}_mask"]
            text += layer("Pooling", name, pick(blobs), " ".join(tops), "pooling_param { kernel_size: 3 pad: 1 }")
        else:
            text += conv(name, pick(blobs), 4, ONE)
        used.update(dict.fromkeys(tops, False))
    return text + conv("end", pick(list(used)), 4, ONE)


def network_of(*layers: str, shape: str = "dim: 1 dim: 256 dim: 14 dim: 14") -> Network:
    """A network of layers a, b, c ..., given as their types and parameters, each on the one before; on itself (in
    place) if it starts with a *."""
    text = f'layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ {shape} }} }} }}'
    bottom = "data"
    for name, layer in zip("abcdefgh", layers, strict=False):
        type_, _, parameters = layer.removeprefix("*").partition(" ")
        top = bottom if layer.startswith("*") else name
        text += f'\nlayer {{ name: "{name}" type: "{type_}" bottom: "{bottom}" top: "{top}" {parameters} }}'
        bottom = top
    return Network.from_text(text, "network")
