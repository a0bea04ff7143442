"""What a record says about its machine: enough to judge it, nothing that changes by itself."""

from __future__ import annotations

import getpass
import json
import platform
import subprocess
import sys

import pytest
import torch

from normbench.engine import environment

CPU = torch.device("cpu")


def test_the_environment_is_plain_json() -> None:
    described = environment.describe(CPU, 1)
    assert json.loads(json.dumps(described, allow_nan=False)) == described


def test_versions_are_those_in_use() -> None:
    described = environment.describe(CPU, 1)
    assert described["packages"]["torch"] == torch.__version__.split("+")[0] or (
        described["packages"]["torch"] == torch.__version__
    )
    assert described["python"] == platform.python_version()


def test_another_process_describes_the_machine_alike() -> None:
    code = (
        "import json, torch; from normbench.engine import environment;"
        "print(json.dumps(environment.describe(torch.device('cpu'), 1)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == environment.describe(CPU, 1)


def test_nothing_names_the_machine_or_its_user() -> None:
    values = json.dumps(environment.describe(CPU, 1)).split('"')
    assert platform.node() not in values
    assert getpass.getuser() not in values


def test_the_hardware_class_is_one_tidy_line() -> None:
    name = environment.hardware_class(CPU)
    assert name.startswith("cpu: ")
    assert name == " ".join(name.split())
    assert len(name) > len("cpu: ")


def test_the_submitter_is_anonymous_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NORMBENCH_SUBMITTER", raising=False)
    assert environment.submitter() == "local"
    monkeypatch.setenv("NORMBENCH_SUBMITTER", " ada ")
    assert environment.submitter() == "ada"


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(environment.DeviceError, match="unknown device 'tpu'"):
        environment.resolve_device("tpu")


def test_cuda_where_there_is_none_is_one_clear_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(environment.DeviceError, match="torch finds no CUDA device"):
        environment.resolve_device("cuda")
    assert environment.resolve_device("auto") == CPU


def arm_cores(*parts: str) -> str:
    return "\n\n".join(
        f"processor\t: {i}\nBogoMIPS\t: 50.00\nCPU implementer\t: 0x41\n"
        f"CPU architecture: 8\nCPU variant\t: 0x3\nCPU part\t: {part}\nCPU revision\t: 1"
        for i, part in enumerate(parts)
    )


def test_different_arm_processors_have_different_names() -> None:
    server, other = arm_cores("0xd0c", "0xd0c"), arm_cores("0xd40", "0xd40")
    assert environment._name_in(server) == "ARM implementer 0x41 part 0xd0c"
    assert environment._name_in(other) == "ARM implementer 0x41 part 0xd40"


def test_big_and_little_arm_cores_are_both_named_in_any_order() -> None:
    name = environment._name_in(arm_cores("0xd08", "0xd03", "0xd08"))
    assert name == "ARM implementer 0x41 part 0xd03 + implementer 0x41 part 0xd08"
    assert environment._name_in(arm_cores("0xd03", "0xd08")) == name


def test_a_processor_with_a_name_has_it_tidied() -> None:
    text = "processor\t: 0\nmodel name\t: Some  CPU   @ 2 GHz\nflags\t: fpu"
    assert environment._name_in(text) == "Some CPU @ 2 GHz"
    assert environment._name_in("processor : 0\n") == ""
