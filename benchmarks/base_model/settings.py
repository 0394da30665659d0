"""Every choice that a base model depends on, in one value."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How a dense model becomes a mixture of experts.

    Attributes:
        num_experts: routed experts per layer.
        top_k: of them, chosen for a token.
        num_shared: neurons of the FFN that every token uses; the others are split evenly.
        router_scale: factor on the fitted router's logits. The weights of a token's experts are a
            softmax of them: near 0 all are alike, as in the dense model.
        calibration_tokens: that neurons are grouped by, and routers fitted to.
        tokens: that the model is distilled on.
        sampled_tokens: of the dense model's own text, made for it.
        seq_len: tokens of a window.
        batch_size: windows of a step.
        learning_rate: its peak; routers learn `router_rate` times as fast, and the experts' output
            matrices, whose entries are `top_k` times the dense ones, `top_k` times.
        warmup: share of the tokens in which the learning rate rises; then it falls by a cosine.
        hidden_weight: of the hidden states' relative squared error, beside the KL divergence.
        choose_every: steps between two losses on the text that chooses the best checkpoint, on
            `choose_windows` of its windows.
        save_every: steps between two checkpoints.
        experts: how they are computed: `masked` as one FFN, or an implementation of transformers.
        seed: draws groups, windows and samples.
    """

    num_experts: int
    top_k: int
    num_shared: int
    router_scale: float = 0.5
    calibration_tokens: int = 16384
    tokens: int = 1_000_000
    sampled_tokens: int = 250_000
    seq_len: int = 256
    batch_size: int = 4
    learning_rate: float = 6e-4
    router_rate: float = 3.0
    warmup: float = 0.02
    hidden_weight: float = 2.0
    choose_every: int = 50
    choose_windows: int = 32
    save_every: int = 100
    experts: str = "masked"
    seed: int = 0

    @property
    def num_steps(self):
        """Of distillation."""
        return self.tokens // (self.seq_len * self.batch_size)


VARIANTS = {
    "fine": Settings(num_experts=32, top_k=8, num_shared=768, tokens=600_000),
    "coarse": Settings(num_experts=8, top_k=4, num_shared=0, tokens=300_000),
}
"""Fine-grained with a shared expert, as Qwen-MoE and DeepSeek; and few experts, as LLaMA-MoE."""
