"""Flags of XLA under which tests compile: most of their programs take a few small steps."""

from importlib.metadata import version

# Compiling takes longer than running. So LLVM does not optimise, and XLA's older emitters write the fused
# operations, in a third of the time. XLA's own passes all run.
XLA_FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if version("jaxlib").startswith(("0.10.", "0.11.")):  # an unknown flag ends the process
    XLA_FLAGS += " --xla_cpu_use_fusion_emitters=false"
