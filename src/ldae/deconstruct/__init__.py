"""The paper's path from DiT to l-DAE: every row, over seeds, on any data, resumed and shared between processes."""
