"""What tests of parts need and users may use for their own: so far a CUDA device that exists nowhere (`fake_cuda`)."""

from guerdon.testing.fake_cuda import FakeCudaTensor, MixedDevices, fake_cuda, on_cpu, on_cuda

__all__ = ["FakeCudaTensor", "MixedDevices", "fake_cuda", "on_cpu", "on_cuda"]
