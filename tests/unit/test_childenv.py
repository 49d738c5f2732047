"""An engine gets what it needs of the environment, and nothing that could be a secret."""

import pytest

from agent.childenv import kept


@pytest.mark.parametrize(
    "name",
    """
    PATH HOME LANG LC_ALL TZ LD_LIBRARY_PATH PYTHONPATH OMP_NUM_THREADS COVEY_ENGINE_LOG
    CUDA_VISIBLE_DEVICES GGML_CUDA_NO_PINNED ROCR_VISIBLE_DEVICES HSA_OVERRIDE_GFX_VERSION
    VK_ICD_FILENAMES ONEAPI_DEVICE_SELECTOR LLAMA_CPP_LIB_PATH
    """.split(),
)
def test_what_an_engine_needs(name: str) -> None:
    assert kept({name: "x"}) == {name: "x"}


@pytest.mark.parametrize(
    "name",
    """
    HF_TOKEN HUGGING_FACE_HUB_TOKEN AWS_SECRET_ACCESS_KEY GITHUB_TOKEN OPENAI_API_KEY LLAMA_API_KEY
    http_proxy HTTPS_PROXY ALL_PROXY no_proxy SSH_AUTH_SOCK DBUS_SESSION_BUS_ADDRESS NOTIFY_SOCKET
    CREDENTIALS_DIRECTORY PGPASSWORD DATABASE_URL COVEY_GATEWAY_STORE COVEY_NODE_STATE_DIR
    NVIDIA_API_KEY AMD_SECRET_THING SOMETHING_ELSE
    """.split(),
)
def test_what_it_does_not(name: str) -> None:
    assert kept({name: "x"}) == {}
