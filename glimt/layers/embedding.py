"""`Embedding`: the rows of the vocabulary that this rank holds."""

from torch import Tensor, nn
from torch.nn import functional

from glimt.layers.linear import parameter
from glimt.parallel.mesh import Mesh


class Embedding(nn.Module):
    """weight [V / tp, D]: rank r holds token ids r · V / tp and following."""

    def __init__(self, vocab_size: int, hidden_size: int, mesh: Mesh) -> None:
        super().__init__()
        self.num_rows = mesh.tp_share(vocab_size, "vocab_size")
        self.first_row = self.num_rows * mesh.tp_rank
        self.split = mesh.tp_size > 1
        self.weight = parameter(self.num_rows, hidden_size)

    def forward(self, token_ids_T: Tensor) -> Tensor:
        """[T] -> [T, D]; zeros for tokens of other ranks, so that the sum is the embedding."""
        if not self.split:
            return functional.embedding(token_ids_T, self.weight)
        local_T = token_ids_T - self.first_row
        foreign_T = (local_T < 0) | (local_T >= self.num_rows)
        x_TD = functional.embedding(local_T.masked_fill(foreign_T, 0), self.weight)
        return x_TD.masked_fill(foreign_T[:, None], 0.0)
