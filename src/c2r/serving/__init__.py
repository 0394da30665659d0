"""A plan inside serving engines: their own routers score, the plan's policy chooses.

The plugins need no transformers, so that they stand beside whichever version an engine wants. The
engines find `vllm.register` and `sglang.register` by their entry points. `check` compares an
engine with transformers, from transformers' side.
"""
