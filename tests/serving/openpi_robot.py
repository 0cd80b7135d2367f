"""Runs in an environment of its own, with openpi-client and none of our code: a LIBERO robot and a DROID robot.

python openpi_robot.py PORT API_KEY OUT.npz
"""

import sys

import numpy as np
from openpi_client import image_tools, websocket_client_policy


def picture(seed):
    rows, columns, colours = np.indices((24, 32, 3))
    whole = ((rows * 5 + columns * 3 + colours * 40 + seed * 17) % 256).astype(np.uint8)
    return image_tools.convert_to_uint8(image_tools.resize_with_pad(whole, 16, 16))


STATE = np.linspace(-1, 1, 8)
ROBOTS = {
    "libero": {
        "observation/image": picture(0),
        "observation/wrist_image": picture(1),
        "observation/state": np.concatenate((STATE[:3], STATE[3:6], STATE[6:])),
        "prompt": "put the bowl",
    },
    "droid": {
        "observation/exterior_image_1_left": picture(0),
        "observation/wrist_image_left": picture(1),
        "observation/joint_position": STATE[:7],
        "observation/gripper_position": STATE[7:],
        "prompt": "put the bowl",
    },
}


def main(port, api_key, out):
    found = {"picture0": picture(0), "picture1": picture(1), "state": STATE}
    for name, observation in ROBOTS.items():
        policy = websocket_client_policy.WebsocketClientPolicy("127.0.0.1", port, api_key=api_key)
        found[f"{name}_horizon"] = policy.get_server_metadata()["action_horizon"]
        found[f"{name}_unseeded"] = policy.infer(observation)["actions"]
        answer = policy.infer({**observation, "seed": 3})
        policy.reset()
        found[f"{name}_seeded"] = answer["actions"]
        found[f"{name}_timing"] = [answer["server_timing"]["infer_ms"], answer["server_timing"]["prev_total_ms"]]
        try:
            policy.infer({**observation, "prompt": 3})
        except RuntimeError as error:
            found[f"{name}_error"] = str(error)
    np.savez(out, **found)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
