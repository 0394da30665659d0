import pytest

from c2r.adapters.layers import split_layer


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("model.layers.3.mlp.gate", ("model.layers.3", "mlp.gate")),
        (
            "layers.12.mlp.experts.7.down_proj.weight",
            ("layers.12", "mlp.experts.7.down_proj.weight"),
        ),
        ("transformer.blocks.0", ("transformer.blocks.0", "")),
        ("lm_head.weight", None),
        ("", None),
    ],
)
def test_split_at_the_first_number(path: str, expected: tuple[str, str] | None) -> None:
    assert split_layer(path) == expected
