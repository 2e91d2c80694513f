"""Ask both servers with tritonclient, in its own environment, and print its answers as JSON.

Arguments: the addresses of HTTP and gRPC, the token, a file of images.
"""

import json
import sys

import numpy as np
import tritonclient.grpc
import tritonclient.http


def ask(kind, address, name, token, images, **settings):
    """Return the logits and what a missing model and a missing token are answered, by one kind of client."""
    headers = lambda: {name: f"Bearer {token}"}  # a new one for each call: the client writes in it
    given = kind.InferInput("images", list(images.shape), "FP32")
    given.set_data_from_numpy(images, **settings)
    with kind.InferenceServerClient(address) as client:
        assert client.is_server_live() and client.is_server_ready()
        assert client.is_model_ready("digits", headers=headers()) and client.get_server_metadata(headers=headers())
        answers = []
        for outputs in (None, [kind.InferRequestedOutput("logits", **settings)]):
            answer = client.infer("digits", [given], outputs=outputs, headers=headers(), model_version="1")
            answers.append(answer.as_numpy("logits").tolist())
        return answers, [refused(client, given, "none", headers()), refused(client, given, "digits", {})]


def refused(client, given, model, headers):
    """Return what the client says of a request that is not answered."""
    try:
        client.infer(model, [given], headers=headers)
    except tritonclient.utils.InferenceServerException as error:
        return error.status()
    return "answered"


if __name__ == "__main__":
    http, grpc, token, path = sys.argv[1:]
    asked = token, np.load(path)
    found = {
        "binary": ask(tritonclient.http, http, "Authorization", *asked, binary_data=True),
        "json": ask(tritonclient.http, http, "Authorization", *asked, binary_data=False),
        "grpc": ask(tritonclient.grpc, grpc, "authorization", *asked),
    }
    print(json.dumps(found))
