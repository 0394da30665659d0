"""Which experts does a model choose together? Profiles the embedded model, writes the profile."""

from transformers import AutoModelForCausalLM, AutoTokenizer

import c2r
from c2r.assets import heldout_files, tiny_folder


def main() -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_folder(), dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder())
    texts = [path.read_text(encoding="utf-8") for path in heldout_files()]
    pieces = [text[start : start + 1024] for text in texts for start in range(0, 4096, 1024)]
    profile = c2r.profile(model, (tokenizer(piece, return_tensors="pt") for piece in pieces))
    profile.save("profile.safetensors")

    print(f"{profile.num_tokens:,} tokens, {profile.num_experts} experts, k = {profile.top_k}")
    for index, layer in enumerate(profile.layers):
        metrics = c2r.measure_collaboration(layer)
        one, other = divmod(int(layer.coactivation.argmax()), layer.num_experts)
        print(
            f"layer {index}: an expert shares its tokens with "
            f"{metrics.effective_collaborators:.1f} others in effect, {one} and {other} share most"
        )


if __name__ == "__main__":
    main()
