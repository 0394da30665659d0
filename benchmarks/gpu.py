"""What the GPU benchmarks share: the device, clocks, and routing."""

import platform
import sys

import harness
import numpy as np
import torch
from embedded import profile_halves

from c2r.ops.backend import choose_backend
from c2r.profiling import CollaborationProfile

_L2_BYTES = 256 * 2**20  # more than any cache: written between measurements


def add_arguments(parser):
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes: tries the program only")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--profile", help="routing of a real model, where E and k are the shape's")
    parser.add_argument("--layer", type=int, default=0, help="of that profile")


def routing_of(args):
    return Routing(args.profile, args.layer, 1000 if args.tiny else 20_000)


def device_of(args):
    """The device; exits with status 2 where it is not there."""
    if args.device == "cuda" and not torch.cuda.is_available():
        print(
            "this benchmark measures a GPU and found none; --device cpu --tiny tries the program",
            file=sys.stderr,
        )
        raise SystemExit(2)
    return torch.device(args.device, 0)


def milliseconds(function, device):
    """Of one call, with cold caches on a GPU."""
    if device.type == "cpu":
        return 1000 * harness.seconds_of(function)
    torch.empty(_L2_BYTES, dtype=torch.int8, device=device).zero_()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(1_000_000)  # the host is ahead when the clock starts: no launch is timed
    begin.record()
    function()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end)


def interleaved(functions, rounds, device):
    """Milliseconds `[rounds]` of each function by name; two rounds before compile and warm up."""
    return harness.interleave(functions, rounds, lambda f: milliseconds(f, device), num_warm_ups=2)


class Routing:
    """Experts of tokens: from a profile where it fits, else as skewed as the embedded model's.

    Args:
        profile: file of `c2r profile` or `c2r import`, of a model with the shape's E and k.
        layer: which of its layers.
        num_tokens: of the embedded model, to measure its skew on.
    """

    def __init__(self, profile=None, layer=0, num_tokens=20_000):
        self.file, self.num_tokens = profile, num_tokens
        self.layer = None if profile is None else CollaborationProfile.load(profile).layers[layer]
        self.embedded = None

    def ids(self, num_experts, k, num_tokens):
        """`[tokens, k]` int64, and where they come from."""
        rng = np.random.default_rng(0)
        layer = self.layer
        if layer is not None and (layer.num_experts, layer.top_k) == (num_experts, k):
            sets, counts = layer.routing_sets()
            drawn = rng.choice(len(sets), num_tokens, p=counts / counts.sum())
            return torch.from_numpy(sets[drawn].astype(np.int64)), f"drawn from {self.file}"
        if self.embedded is None:
            first, _ = profile_halves(self.num_tokens)
            self.embedded = np.sort(first.layers[0].load / first.layers[0].load.sum())
        places = np.linspace(0, len(self.embedded) - 1, num_experts)
        share = np.interp(places, np.arange(len(self.embedded)), self.embedded)
        keys = np.log(share + 1e-9) + rng.gumbel(size=(num_tokens, num_experts))
        ids = np.argpartition(-keys, k - 1, axis=1)[:, :k]
        source = "made up: random, with the skew of the embedded model's load stretched to E"
        return torch.from_numpy(rng.permutation(num_experts)[ids]), source


def finish(benchmark, baseline, rows, args, device, **others):
    """Prints the line of JSON, with what is to be known of the device."""
    is_gpu = device.type == "cuda"
    choice = choose_backend(device)
    harness.finish(
        benchmark,
        baseline,
        rows,
        vars(args),
        device=torch.cuda.get_device_name(device) if is_gpu else platform.processor(),
        claims_nothing=not is_gpu or args.tiny,
        backend=f"{choice.backend}: {choice.reason}",
        **others,
    )
