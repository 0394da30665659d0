"""What does a routing policy cost and save? Measures five of them on text that was not profiled."""

from transformers import AutoModelForCausalLM, AutoTokenizer

import c2r
from c2r.assets import heldout_files, tiny_folder

POLICIES = {"c2r": 8, "group_limited": 2, "pruned": 0.1, "budgeted": 0.1, "priced": 0.05}


def main() -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_folder(), dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder())
    texts = [path.read_text(encoding="utf-8") for path in heldout_files()]
    profiled = [tokenizer(text[:1024], return_tensors="pt") for text in texts]
    unseen = [tokenizer(text[-1024:], return_tensors="pt") for text in texts]

    profile = c2r.profile(model, profiled)
    placed = c2r.make_plan(profile, num_ranks=4, policy="top_k")
    print("policy           loss   change   copies per token")
    for policy, strength in {"top_k": None, **POLICIES}.items():
        plan = c2r.with_policy(placed, profile, policy, strength)
        found = c2r.measure(model, unseen, plan)
        change = 100 * found.loss_increase
        print(f"{policy:14}  {found.loss:.3f}  {change:+5.2f} %  {found.copies:.2f}")

    c2r.apply(model, plan)  # constrains the model; c2r.remove(model) would undo it
    prompt = tokenizer("def __init__(self", return_tensors="pt")
    print(tokenizer.decode(model.generate(**prompt, max_new_tokens=60, do_sample=False)[0]))


if __name__ == "__main__":
    main()
