"""Boxes from a detector's file: ONNX Runtime and NumPy alone."""

import numpy as np
import onnxruntime

LEAST_SCORE, OVERLAP, MOST = 0.3, 0.45, 100


def overlaps(box, boxes):
    """Intersection over union of one box with many; each is left, top, right, bottom."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return shared / np.maximum(np.prod(box[2:] - box[:2]) + areas - shared, 1e-9)


def objects(boxes, scores):
    """(class, score, box) of what is seen in one image, best first."""
    seen = []
    for kind in range(scores.shape[1]):
        left = np.flatnonzero(scores[:, kind] > LEAST_SCORE)
        while len(left):
            best = left[scores[left, kind].argmax()]
            seen.append((kind, float(scores[best, kind]), boxes[best]))
            left = left[overlaps(boxes[best], boxes[left]) <= OVERLAP]
            left = left[left != best]
    return sorted(seen, key=lambda item: -item[1])[:MOST]


if __name__ == "__main__":
    import torch

    import prunekit as pk
    from prunekit.networks.build import build

    torch.manual_seed(0)
    detector = build("zoo:ssd_resnet8", num_classes=3).module.eval()
    pk.export(detector, torch.randn(1, 3, 96, 96), "detector.onnx")

    session = onnxruntime.InferenceSession("detector.onnx")
    image = np.random.default_rng(0).standard_normal((1, 3, 96, 96)).astype(np.float32)
    boxes, scores = session.run(["boxes", "scores"], {"input": image})
    for kind, score, box in objects(boxes[0], scores[0])[:3]:
        print(f"class {kind}, score {score:.2f}, box {box.round().tolist()}")
    print(f"{len(objects(boxes[0], scores[0]))} objects")
