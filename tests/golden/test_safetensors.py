"""What Reprise writes as a shard file is read by the safetensors package, value for value."""

import pathlib

import pytest

safetensors = pytest.importorskip("safetensors")
numpy = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")

GOLDEN = pathlib.Path(__file__).parent / "v1" / "safetensors_file.hex"


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "shard.safetensors"
    path.write_bytes(bytes.fromhex(GOLDEN.read_text()))
    return path


def expected(begin, end):
    """Byte i of the golden tensors is i mod 251."""
    return bytes(i % 251 for i in range(begin, end))


# name in the file, dtype a loader sees, shape, byte range: in file order
TENSORS = [
    ("bn.moyenne_é", torch.uint8, [5, 8], 0, 40),
    ("step", torch.int64, [], 40, 48),
    ("optimizer.exp_avg#flat768:1036", torch.float32, [1036], 48, 4192),
    ("layers.0.weight#16:16x0:48", torch.bfloat16, [16, 48], 4192, 5728),
    ("layers.0.qkv#0:1x0:4+3:1x2:2", torch.bfloat16, [6], 5728, 5740),
    ("rng", torch.uint8, [11], 5740, 5751),
]


def test_every_piece_is_loaded_with_its_dtype_shape_and_bytes(shard):
    with safetensors.safe_open(shard, framework="pt") as file:
        assert set(file.keys()) == {name for name, *_ in TENSORS}
        for name, dtype, shape, begin, end in TENSORS:
            tensor = file.get_tensor(name)
            assert tensor.dtype == dtype, name
            assert list(tensor.shape) == shape, name
            raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
            assert raw == expected(begin, end), name


def test_metadata_tells_the_true_dtype_of_what_loaders_lack(shard):
    with safetensors.safe_open(shard, framework="pt") as file:
        assert file.metadata() == {
            "format": "pt",
            "reprise.step": "12000",
            "reprise.dtype:bn.moyenne_é": "C64",
        }


def test_a_complex_tensor_is_its_bytes_viewed_as_complex(shard):
    with safetensors.safe_open(shard, framework="pt") as file:
        mean = file.get_tensor("bn.moyenne_é").view(torch.complex64)
    assert mean.shape[0] == 5
    assert mean.numpy().tobytes() == expected(0, 40)


def test_a_truncated_file_is_refused_by_the_loader(shard):
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(safetensors.SafetensorError):
        safetensors.safe_open(shard, framework="pt").__enter__()
