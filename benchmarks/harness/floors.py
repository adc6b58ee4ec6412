"""What any implementation must do and nothing else: the floors that benchmarks show beside rows.

Workers, which run as scripts, import this by its own name, and so it imports nothing beside it.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor


def least_seconds(f, repeats=5):
    """CPU seconds of a call, the least of several after one that warms up."""
    found = []
    for _ in range(repeats + 1):
        start = time.process_time()
        f()
        found.append(time.process_time() - start)
    return min(found[1:])


class Convolutions:
    """The convolutions of an outer step and nothing else, each in the fastest way found: the
    library's call, or a product with patches that are there already, whole or in pieces that a
    core's own cache holds. Tasks go over Python threads, one thread of operations each, as
    metabench's."""

    PIECE = 1 << 18  # numbers

    def __init__(self, case, dtype):
        import torch

        torch.set_num_threads(1)
        support, query = (case["ways"] * case[part] for part in ("shots", "queries"))
        # A Hessian product has each of the three twice; of images, which are data, one term.
        each = [1] * 4 if case["first_order"] else [2, 3, 3, 3]
        inner = [n * case["steps"] for n in each]
        self.work = [
            *self.of(case, support, [(n, n, n) for n in inner], dtype),
            *self.of(case, query, [(1, 1, 1)] * 4, dtype),
        ]
        self.tasks, self.threads = case["meta_batch"], case["threads"]

    @classmethod
    def of(cls, case, images, times, dtype):
        """Calls for so many images: ``times`` of each block, forward, in the weight, and in the
        input, which of the first block is none."""
        stride = 1 if case["net"] == "pool" else 2
        work, size, channels = [], case["size"], case["channels"]
        for block, counts in enumerate(times):
            some = cls.ways_of(images, size, stride, channels, case["filters"], dtype)
            for ways, n in zip(some if block else some[:2], counts, strict=bool(block)):
                work += [min(ways, key=least_seconds)] * n if n else []
            size, channels = size // 2 if stride == 1 else -(-size // 2), case["filters"]
        return work

    @staticmethod
    def ways_of(n, size, stride, channels, filters, dtype):
        """Of each of the three convolutions the ways to compute it, for n images."""
        import torch

        out = -(-size // stride)
        x = torch.randn(n, channels, size, size, dtype=dtype)
        w = torch.randn(filters, channels, 3, 3, dtype=dtype)
        g = torch.randn(n, filters, out, out, dtype=dtype)
        x, w, g = (t.contiguous(memory_format=torch.channels_last) for t in (x, w, g))
        table = torch.randn(n * out * out, 9 * channels, dtype=dtype)
        rows, gy = torch.randn(filters, 9 * channels), torch.randn(len(table), filters)
        rows, gy = rows.to(dtype), gy.to(dtype)

        def back(*mask):
            return torch.ops.aten.convolution_backward(
                g, x, w, None, [stride] * 2, [1, 1], [1, 1], False, [0, 0], 1, [*mask, False]
            )

        def in_pieces(product, *parts):
            cut = max(1, Convolutions.PIECE // max(p.shape[1] for p in parts))
            for some in zip(*(p.split(cut) for p in parts), strict=True):
                product(*some)

        return (
            (
                lambda: torch.nn.functional.conv2d(x, w, None, stride, 1),
                lambda: table @ rows.t(),
                lambda: in_pieces(lambda some: some @ rows.t(), table),
            ),
            (
                lambda: back(False, True),
                lambda: gy.t() @ table,
                lambda: in_pieces(lambda a, b: a.t() @ b, gy, table),
            ),
            (
                lambda: back(True, False),
                lambda: gy @ rows,
                lambda: in_pieces(lambda some: some @ rows, gy),
            ),
        )

    def step(self):
        with ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(self.task, range(self.tasks)))

    def task(self, _):
        for f in self.work:
            f()


class Products:
    """The products with all images that the series of softmax regression takes and nothing else: a
    term is one with a direction and one back, in the fastest way found, all rows at once or in
    blocks that stay in the cache between the two."""

    BLOCKS = 128, 256, 512, 1024, 4096

    def __init__(self, case, dtype):
        import torch

        self.x = torch.from_numpy(case["arrays"]["x"]).to(dtype)
        self.v = torch.randn(case["arrays"]["theta.w0"].shape).to(dtype)
        self.terms = case["terms"]
        self.rows = min(
            (len(self.x), *self.BLOCKS), key=lambda n: least_seconds(lambda: self.term(n))
        )

    def term(self, rows):
        from torch.nn import functional as F

        for x in self.x.split(rows):
            F.linear(x, self.v).t() @ x

    def step(self):
        for _ in range(self.terms):
            self.term(self.rows)
