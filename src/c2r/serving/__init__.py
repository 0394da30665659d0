"""A plan inside serving engines: their own routers score, the plan's policy chooses.

Nothing here needs transformers, so that it stands beside whichever version an engine wants. The
engines find `vllm.register` and `sglang.register` by their entry points.
"""
