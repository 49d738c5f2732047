"""Checks of what llama.cpp computes with: GPUs, their drivers against its build, the CPU. A core.

That a GPU computes right is proved elsewhere, in a process of its own (`agent.engine.gpu`); here is
said what became of it, and why a GPU that is there is not used at all.
"""

from __future__ import annotations

from agent.doctor.facts import Facts
from agent.health import HealthItem

# NVIDIA's driver must be at least this for a program built with that major version of CUDA (CUDA's
# release notes, "minor version compatibility").
_DRIVERS = {11: (450, 80), 12: (525, 60), 13: (580, 0)}
_BUILD = (
    "Build llama-cpp-python for it: `CMAKE_ARGS=-DGGML_CUDA=ON make setup` for NVIDIA, "
    "-DGGML_VULKAN=ON for others; or set engine.gpu to off, to compute on the CPU."
)


def gpu(facts: Facts) -> HealthItem:
    """GPUs: the driver, llama.cpp's build, and whether engines use them."""
    machine, build, agent = facts.machine, facts.machine.build, facts.agent
    there = tuple(f"{gpu.maker} at {gpu.place}" for gpu in machine.gpus)
    if not facts.wanted.gpu:
        return HealthItem("gpu-unused", "ok", "GPU", "engine.gpu is off.")
    nvidia = any(gpu.maker == "NVIDIA" for gpu in machine.gpus)
    if nvidia and not machine.nvidia_driver:
        return HealthItem(
            "gpu-driver", "warning", "NVIDIA's driver is missing",
            "A GPU is there, and its driver is not loaded: models are computed on the CPU.",
            "Install NVIDIA's driver and restart the machine; give a container its devices "
            "(`--gpus all`).", there,
        )  # fmt: skip
    least = _DRIVERS.get(build.cuda or 0)
    if nvidia and least and _version(machine.nvidia_driver) < least:
        return HealthItem(
            "gpu-driver", "warning", "NVIDIA's driver is too old",
            f"llama.cpp is built with CUDA {build.cuda}, which needs driver "
            f"{least[0]}.{least[1]} or newer; here is {machine.nvidia_driver}.",
            "Install a newer driver, or build llama-cpp-python with an older CUDA.", there,
        )  # fmt: skip
    if agent and agent.computes.fault:
        return HealthItem(
            "gpu-fails", "warning", "The GPU is not used: it failed its test",
            agent.computes.fault,
            "Models are computed on the CPU meanwhile. Look at the driver (`dmesg`), or build "
            "llama-cpp-python anew on this machine.", there,
        )  # fmt: skip
    if machine.gpus and not build.backends:
        return HealthItem(
            # Nearly every desktop CPU has some GPU of the others: that is worth a note at most.
            "gpu-unused", "warning" if nvidia else "note", "A GPU is not used",
            "llama.cpp is built without any backend for GPUs: models are computed on the CPU.",
            _BUILD, there,
        )  # fmt: skip
    used = agent.computes.used if agent else ()
    if used:
        return HealthItem("gpu-unused", "ok", "GPU", f"Engines use {', '.join(used)}.")
    if not machine.gpus:
        return HealthItem("gpu-unused", "ok", "GPU", "None is there; the CPU computes.")
    backends = ", ".join(build.backends)
    return HealthItem("gpu-unused", "ok", "GPU", f"llama.cpp has a backend for it ({backends}).")


def cpu(facts: Facts) -> HealthItem:
    """The CPU: instructions that it announces and refuses, which crash who believes it."""
    machine = facts.machine
    if not machine.build.installed:
        return HealthItem(
            "llama-missing", "error", "llama.cpp is not installed",
            "This node can hold no part of a model, and cannot be a head.",
            "Run `make setup`, or install llama-cpp-python into the agent's environment.",
        )  # fmt: skip
    refused = f"The CPU announces {', '.join(machine.masked)} and refuses to run it. "
    if machine.repacking is False:
        return HealthItem(
            "cpu-masked", "note", "llama.cpp's fastest kernels fail on this CPU",
            f"{refused if machine.masked else ''}Its self-test died with them and passed without: "
            "models are computed without them, and right, but slower.",
            "Build llama-cpp-python without GGML_NATIVE (`make setup` does), or have the "
            "hypervisor pass the instructions on.",
        )  # fmt: skip
    if machine.masked:
        return HealthItem(
            "cpu-masked", "note", "The CPU announces what it does not do",
            f"{refused}Many virtual machines are so.",
            "Nothing: this llama.cpp does not use it. One built with GGML_NATIVE=ON would crash.",
        )  # fmt: skip
    return HealthItem("cpu-masked", "ok", "CPU", "It does what it announces.")


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdecimal())
