"""Read an image row by row, with a recurrent layer (Hochreiter & Schmidhuber 1997)."""

from torch import Tensor, nn


class RowReader(nn.Module):
    """Take images (N, 1, 28, 28) as sequences of 28 rows, and give logits (N, 10) from the LSTM's last step."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.lstm = nn.LSTM(28, hidden_size, batch_first=True)
        self.fc1 = nn.Linear(hidden_size, 10)

    def forward(self, x: Tensor) -> Tensor:
        steps, _ = self.lstm(x.reshape(x.size(0), 28, 28))  # (N, rows, hidden_size)
        return self.fc1(steps[:, -1])
