"""`Sight`: lets the tower say what each of its rows shows, while it is trained and only then.

From answers alone a tower has to find out by itself that pictures have places: the gradient of
"which colour is the star" reaches each patch through the whole decoder. Being asked for colour,
kind, characters and box of what lies in its own cell, each row learns from each picture. The
weight of these questions falls as the answers take over; the head is not exported.

Letters: B image tokens, Y width of the tower's output.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.sample import LABEL_CLASSES, NUM_CHARACTERS, NUM_LABELS

NUM_BOX_SIDES = 4
BOX_WEIGHT = 4.0
TEXT_WEIGHT = 3.0  # of the characters where there are some: few rows show text, and it is hardest
START_WEIGHT, END_WEIGHT, UNTIL = 0.5, 0.05, 0.8


def sight_weight(progress: float) -> float:
    """Weight of the sight's loss beside that of the answers: falls until UNTIL."""
    share = min(progress / UNTIL, 1.0)
    return START_WEIGHT + (END_WEIGHT - START_WEIGHT) * share


class Sight(nn.Module):
    """One linear map to the classes of all labels and to the sides of the box."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, sum(LABEL_CLASSES) + NUM_BOX_SIDES)

    def forward(self, images_BY: Tensor, labels_BL: Tensor) -> Tensor:
        """The loss, summed over tokens. Labels are int32 [B, NUM_LABELS]; rows that begin with -1
        have none and count nothing."""
        known_B = labels_BL[:, 0] >= 0
        told = self.head(images_BY).float()
        *classes, box_B4 = torch.split(told, [*LABEL_CLASSES, NUM_BOX_SIDES], dim=1)
        loss: Tensor = told.new_zeros(())
        first = len(LABEL_CLASSES) - NUM_CHARACTERS
        is_text_B = (labels_BL[:, first : first + NUM_CHARACTERS] > 0).any(1)
        weight_B = torch.where(is_text_B, TEXT_WEIGHT, 1.0)
        for index, logits_BC in enumerate(classes):
            target_B = torch.where(known_B, labels_BL[:, index], -100).long()
            loss_B = functional.cross_entropy(logits_BC, target_B, reduction="none")
            loss = loss + (loss_B if index < first else loss_B * weight_B).sum()
        sides_B4 = labels_BL[:, NUM_LABELS - NUM_BOX_SIDES :].float() / 1000.0
        shown_B = labels_BL[:, 0] > 0  # the ground has no box
        distance_B = functional.smooth_l1_loss(box_B4, sides_B4, reduction="none", beta=0.05).sum(1)
        loss = loss + BOX_WEIGHT * (distance_B * shown_B).sum()
        return loss
