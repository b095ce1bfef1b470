"""Tests requests as five services document them, with only the host and the pictures replaced.

The services are Nitro, Inference.net, AI/ML API, Gravix Layer and DeepInfra; the bodies are those of their pages.
"""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytest.importorskip("uvicorn", reason="the server extra is not installed")
pytest.importorskip("httpx2", reason="a test client is not installed")

import llava_ref

from .running import data_uri, picture, serving

COUNT = picture("count.png")
B64 = base64.b64encode(COUNT).decode()
WHATS_IN_IT = "What’s in this image?"


class PictureHost(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(picture(self.path.strip("/").partition("?")[0]))

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def host():
    """Serve the pictures that the documentation gives by URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), PictureHost) as it:
        it.daemon_threads = True
        thread = threading.Thread(target=it.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{it.server_port}"
        it.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for path in llava_ref.embedded():
        (folder / path.name).write_bytes(path.read_bytes())
    with serving(hosts=["127.0.0.1"], folders=[folder]) as it:
        it.folder = folder
        yield it


def client(server, path):
    openai = pytest.importorskip("openai", reason="OpenAI's package is not installed")
    return openai.OpenAI(
        base_url=server.url + path, api_key="any", _strict_response_validation=True, max_retries=0, timeout=60
    )


FOLDER = llava_ref.embedded()[0].parent / "pictures"
CAPTIONS = {shown["file"]: shown["caption"] for shown in json.loads((FOLDER / "pictures.json").read_text())}
RIGHT = CAPTIONS["count.png"]


def answered(answer, images=1, right=RIGHT):
    body = answer.json()
    assert answer.status_code == 200, body
    assert body["choices"][0]["message"]["content"] == right and body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["prompt_tokens_details"]["image_tokens"] == 64 * images
    return body


def sdk_answered(completion, images=1):
    assert completion.choices[0].message.content == RIGHT and completion.choices[0].finish_reason == "stop"
    assert completion.usage.prompt_tokens_details.image_tokens == 64 * images


def curl(server, path, body, **headers):
    return server.post(path, body, headers=headers)


def url_part(url):
    return {"type": "image_url", "image_url": {"url": url}}


def text_part(text):
    return {"type": "text", "text": text}


def test_nitro_load_and_ask(server):
    text, mmproj = (server.folder / path.name for path in llava_ref.embedded())
    body = {
        "llama_model_path": str(text),
        "mmproj": str(mmproj),
        "ctx_len": 2048,
        "ngl": 100,
        "cont_batching": False,
        "embedding": False,
        "system_prompt": "",
        "user_prompt": "\n### Instruction:\n",
        "ai_prompt": "\n### Response:\n",
    }
    assert curl(server, "/inferences/llamacpp/loadmodel", body).status_code == 200
    asked = {
        "model": "gpt-4-vision-preview",
        "messages": [{"role": "user", "content": [text_part(WHATS_IN_IT), url_part(B64)]}],
        "max_tokens": 300,
    }
    answer = curl(server, "/v1/chat/completions", asked, authorization="Bearer").json()
    assert answer["model"] == "gpt-4-vision-preview"
    assert answer["usage"]["prompt_tokens_details"]["image_tokens"] == 64
    assert answer["choices"][0]["message"]["content"].strip() == RIGHT
    server.client.get("/inferences/llamacpp/unloadmodel")
    again = curl(server, "/inferences/llamacpp/loadmodel", {"llama_model_path": str(text), "mmproj": str(mmproj)})
    assert again.status_code == 200


SYSTEM = {"role": "system", "content": "You are a helpful assistant that can answer questions about the image."}
INFERENCE = [SYSTEM, {"role": "user", "content": [url_part(data_uri(COUNT)), text_part("What is in this image?")]}]


def test_inference_net(server):
    body = {"model": "google/gemma-3-27b-instruct/bf-16", "messages": INFERENCE}
    answered(curl(server, "/v1/chat/completions", body, authorization="Bearer key"))


def test_inference_net_sdk(server):
    completion = client(server, "/v1").chat.completions.create(
        model="google/gemma-3-27b-instruct/bf-16", messages=INFERENCE
    )
    sdk_answered(completion)


def test_aimlapi_by_url(server, host):
    content = [text_part(WHATS_IN_IT), url_part(f"{host}/count.png")]
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": content}], "max_tokens": 300}
    answered(curl(server, "/chat/completions", body, authorization="Bearer YOUR_API_KEY"))


def test_aimlapi_base64(server):
    content = [text_part(WHATS_IN_IT), url_part(data_uri(COUNT, "image/jpeg"))]
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": content}], "max_tokens": 300}
    answered(curl(server, "/chat/completions", body, authorization="Bearer YOUR_API_KEY"))


def test_aimlapi_several(server, host):
    question = "What are in these images? Is there any difference between them?"
    content = [text_part(question), url_part(f"{host}/count.png"), url_part(f"{host}/count.png")]
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": content}], "max_tokens": 300}
    right = f"In the first, {RIGHT}. In the second, {RIGHT}."  # the same picture twice
    answered(curl(server, "/chat/completions", body, authorization="Bearer YOUR_API_KEY"), images=2, right=right)


DESCRIBE = "Can you describe this image?"


def by_url(host):
    url = f"{host}/count.png?q=80&w=3024&auto=format&fit=crop&ixlib=rb-4.1.0&ixid=M3wxMjA3fDB8MHxwaG90fA%3D%3D"
    return [{"role": "user", "content": [text_part(DESCRIBE), url_part(url)]}]


def test_gravixlayer_by_url(server, host):
    answered(curl(server, "/v1/inference/chat/completions", {"model": "gemma3:12b", "messages": by_url(host)}))


def test_gravixlayer_by_url_sdk(server, host):
    sdk_answered(client(server, "/v1/inference").chat.completions.create(model="gemma3:12b", messages=by_url(host)))


def test_gravixlayer_local(server):
    content = [text_part("what is in the image"), url_part(data_uri(COUNT, "image/jpeg"))]
    body = {"model": "qwen2.5vl:7b", "messages": [{"role": "user", "content": content}], "stream": False}
    answered(curl(server, "/v1/inference/chat/completions", body))


def test_gravixlayer_stream_sdk(server):
    content = [text_part("what is in the image"), url_part(data_uri(COUNT))]
    stream = client(server, "/v1/inference").chat.completions.create(
        model="qwen2.5vl:7b", messages=[{"role": "user", "content": content}], stream=True
    )
    assert "".join(chunk.choices[0].delta.content or "" if chunk.choices else "" for chunk in stream) == RIGHT


def test_deepinfra_by_url(server, host):
    body = {
        "model": "meta-llama/Llama-3.2-90B-Vision-Instruct",
        "messages": [{"role": "user", "content": [url_part(f"{host}/count.png"), text_part(WHATS_IN_IT)]}],
    }
    answered(curl(server, "/v1/openai/chat/completions", body, authorization="Bearer token"))


def test_deepinfra_sdk(server):
    completion = client(server, "/v1/openai").chat.completions.create(
        model="meta-llama/Llama-3.2-90B-Vision-Instruct",
        messages=[
            {"role": "user", "content": [url_part(data_uri(COUNT, "image/jpeg")), text_part(WHATS_IN_IT)]},
        ],
    )
    sdk_answered(completion)


def test_deepinfra_several(server, host):
    content = [url_part(f"{host}/count.png"), url_part(f"{host}/colour.png"), text_part(WHATS_IN_IT)]
    body = {"model": "meta-llama/Llama-3.2-90B-Vision-Instruct", "messages": [{"role": "user", "content": content}]}
    right = f"In the first, {RIGHT}. In the second, {CAPTIONS['colour.png']}."
    answered(curl(server, "/v1/openai/chat/completions", body, authorization="Bearer token"), images=2, right=right)
