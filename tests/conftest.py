import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels run without a GPU; read at their import

import torch
from hypothesis import settings

torch.set_num_threads(1)  # two OpenMP threads are 100 times slower on models this small
settings.register_profile("c2r", deadline=None)  # no timing decides a test
settings.load_profile("c2r")
