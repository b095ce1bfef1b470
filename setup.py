"""List the packages: the top-level folders `kernels`, `conformance` and `docs` are installed inside `llava_ref`."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["llava_ref*"]),
        "llava_ref.docs",
        *("llava_ref." + name for name in find_packages(include=["kernels*", "conformance*"])),
    ]
)
