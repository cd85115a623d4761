"""Newton's method for multinomial logistic regression on ill-conditioned features, several feature sets at a time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ldae import stopping

from .feature_store import pieces_of
from .grid_probes import Moments, Part


ROWS_BYTES = 2 * 2**20  # of features in one product: pieces and their logits stay in the processor's cache
FORCING = 0.1  # relative residual at which conjugate gradients stop
CG_STEPS = 50
ARMIJO = 1e-4  # share of the promised decrease that a step must bring
ROUNDING = 1e-7  # relative error of the loss, whose products are in float32
HALVINGS = 20


@dataclass(frozen=True)
class Solution:
    """Logistic regressions of F feature sets in the whitened basis: `weight` `(F, C, K)`, `bias` `(F, K)`, and of each
    `(F,)`: the penalised `loss`, the relative `gradient` norm, whether it `converged` and the Newton `iterations`.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    loss: torch.Tensor
    gradient: torch.Tensor
    converged: torch.Tensor
    iterations: torch.Tensor

    @classmethod
    def starting_at(cls, weight: torch.Tensor, bias: torch.Tensor) -> "Solution":
        """Make a starting point, of which only weights and biases are known."""
        nothing = weight.new_full((len(weight),), float("nan"))
        never = torch.zeros(len(weight), dtype=torch.bool)
        return cls(weight.clone(), bias.clone(), nothing, nothing, never, never.long())


class WhitenedFeatures:
    """Standardised features of some sets, rotated into the eigenbasis of their covariance.

    The rotation leaves the L2 penalty as it is. Each direction has its eigenvalue as variance, so that a diagonal
    preconditioner does what a full one would.

    Args:
        parts (`Sequence[tuple]`): Features `(n, F, C)` and classes `(n,)`, one part after the other.
        sets (`slice`): The feature sets taken.
        moments ([`~ldae.evaluation.grid_probes.Moments`]): Of these parts and sets.
        memory (`int`): Bytes of features that may be kept; beyond it they are read and rotated anew in each pass.
    """

    def __init__(self, parts: Sequence[Part], sets: slice, moments: Moments, memory: int) -> None:
        self.parts, self.sets, self.n = parts, sets, moments.n
        self.mean = moments.mean  # (F, C)
        self.std, self.values, self.vectors = moments.standardise()
        counts = moments.y
        self.present = counts.nonzero().flatten()  # (K',): classes with examples
        self.prior = (counts[self.present] / moments.n).log()  # (K',)
        place = torch.full((len(counts),), -1, dtype=torch.long)
        place[self.present] = torch.arange(len(self.present))
        self.labels = torch.cat([place[labels.cpu()] for _, labels in parts])  # (n,), among classes with examples
        self.kept: torch.Tensor | None = None
        self.probabilities: torch.Tensor | None = None  # (F, n, K'), of the latest evaluation of each set
        count, c = self.mean.shape
        if 4 * count * self.n * c <= memory:
            kept, begin = torch.empty(count, self.n, c), 0
            for z in self._read():
                kept[:, begin : begin + z.shape[1]] = z
                begin += z.shape[1]
            self.kept = kept
            self.probabilities = torch.empty(count, self.n, len(self.present))

    def whiten_weight(self, raw: torch.Tensor) -> torch.Tensor:
        """Turn weights `(F, C, K)` of raw features into those of whitened ones."""
        return self.vectors.mT @ (raw * self.std[..., None])

    def raw_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """Turn weights `(F, C, K)` of whitened features into those of raw ones."""
        return (self.vectors @ weight) / self.std[..., None]

    def evaluate(
        self, active: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute the mean cross-entropy of some sets and its gradient.

        Args:
            active (`torch.LongTensor` of shape `(A,)`): The sets.
            weight (`torch.Tensor` of shape `(A, C, K)`), bias (`torch.Tensor` of shape `(A, K)`): Of these sets.

        Returns:
            `(loss (A,), gradient of the weights (A, C, K), of the biases (A, K), mean of p (1 - p) (A, K))`.
        """
        loss = weight.new_zeros(len(active))
        grad_weight, grad_bias, spread = torch.zeros_like(weight), torch.zeros_like(bias), torch.zeros_like(bias)
        w, b = weight.float(), bias.float()[:, None]
        for rows, z in self._pieces(active):
            y = self.labels[rows]
            log_p = torch.baddbmm(b, z, w).log_softmax(dim=-1)  # (A, b, K)
            loss -= log_p.gather(2, y.expand(len(active), -1)[..., None]).sum(dim=(1, 2), dtype=torch.float64)
            p = log_p.exp()
            if self.probabilities is not None:
                self.probabilities[active, rows] = p
            spread += (p - p.square()).sum(dim=1)
            residual = p - F.one_hot(y, p.shape[2])
            grad_weight += z.mT @ residual
            grad_bias += residual.sum(dim=1)
        return loss / self.n, grad_weight / self.n, grad_bias / self.n, spread / self.n

    def curvature(
        self, active: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
    ) -> Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
        """Return the function that multiplies by the Hessian of the cross-entropy at a point that was evaluated."""
        w, b = weight.float(), bias.float()[:, None]

        def product(by_weight: torch.Tensor, by_bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            out_weight, out_bias = torch.zeros_like(by_weight), torch.zeros_like(by_bias)
            dw, db = by_weight.float(), by_bias.float()[:, None]
            for rows, z in self._pieces(active):
                if self.probabilities is None:
                    p = torch.baddbmm(b, z, w).softmax(dim=-1)
                else:
                    p = self.probabilities[active, rows]
                u = torch.baddbmm(db, z, dw)  # (A, b, K)
                change = p * (u - (p * u).sum(dim=-1, keepdim=True))
                out_weight += z.mT @ change
                out_bias += change.sum(dim=1)
            return out_weight / self.n, out_bias / self.n

        return product

    def _pieces(self, active: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield ranges of examples and their features `(A, b, C)` in float32."""
        if self.kept is None:
            begin = 0
            for z in self._read():
                yield slice(begin, begin + z.shape[1]), z[active]
                begin += z.shape[1]
            return
        every = len(active) == len(self.kept)
        step = max(1, ROWS_BYTES // (4 * len(active) * self.kept.shape[2]))
        for begin in range(0, self.n, step):
            rows = slice(begin, min(begin + step, self.n))
            yield rows, self.kept[:, rows] if every else self.kept[active, rows]

    def _read(self) -> Iterator[torch.Tensor]:
        rotation = self.vectors / self.std[..., None]
        for features, _ in self.parts:
            for piece in pieces_of(features, copies=8):
                x = piece[:, self.sets].cpu().double().transpose(0, 1)  # (F, b, C)
                yield ((x - self.mean[:, None]) @ rotation).float()


def solve_logistic(
    data: WhitenedFeatures,
    penalty: torch.Tensor,
    start: Solution | None = None,
    *,
    tolerance: float,
    max_iterations: int,
) -> Solution:
    """Minimise mean CE + penalty / 2 ||W||^2 by Newton's method, whose steps conjugate gradients solve.

    The norm of a gradient g is that of P^-1/2 g, where P = a_k lambda_j + penalty is the diagonal of the Hessian if
    examples' spreads a_k = mean p_k (1 - p_k) were the same everywhere: half its square is about the loss that is left
    to gain, whatever the features' condition. A set stops where this norm is at most `tolerance` times that at zero
    weights.

    Args:
        data ([`WhitenedFeatures`]): F feature sets.
        penalty (`torch.Tensor` of shape `(F,)`): Positive.
        start ([`Solution`], *optional*): Where to start; by default at zero weights and the classes' shares.
        tolerance (`float`): Relative gradient norm to reach.
        max_iterations (`int`): Most Newton steps.

    Returns:
        [`Solution`], in which `converged` says which sets reached the tolerance.
    """
    count, c = data.mean.shape
    zero = Solution.starting_at(data.mean.new_zeros(count, c, len(data.present)), data.prior.expand(count, -1))
    everything = torch.arange(count)
    problem = _Problem(data, penalty)
    reference = problem.norm(problem.point(everything, zero.weight, zero.bias))
    weight, bias = ((start or zero).weight.clone(), (start or zero).bias.clone())
    loss, gradient = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    iterations, active = torch.zeros(count, dtype=torch.long), everything
    at = problem.point(active, weight, bias)
    for step in range(max_iterations + 1):
        stopping.check()
        norm = problem.norm(at)
        loss[active] = at.loss
        gradient[active] = torch.where(reference[active] > 0, norm / reference[active], norm)
        going = gradient[active] > tolerance
        if step == max_iterations or not going.any():
            break
        at = at.select(going)
        moved, at = problem.newton_step(at)
        weight[at.active], bias[at.active] = at.weight, at.bias
        iterations[at.active] += 1
        loss[at.active] = at.loss
        at = at.select(moved)  # what cannot be improved any more stays where it is
        active = at.active
        if len(active) == 0:
            break
    return Solution(weight, bias, loss, gradient, gradient <= tolerance, iterations)


@dataclass(frozen=True)
class _Point:
    """Weights and biases of the sets `active` with their loss, gradients and preconditioner."""

    active: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    loss: torch.Tensor
    grad_weight: torch.Tensor
    grad_bias: torch.Tensor
    scale_weight: torch.Tensor
    scale_bias: torch.Tensor

    def select(self, mask: torch.Tensor) -> "_Point":
        """Keep some of the sets."""
        return self if mask.all() else _Point(*(getattr(self, name)[mask] for name in self.__dataclass_fields__))


class _Problem:
    """The penalised objective of [`solve_logistic`]."""

    def __init__(self, data: WhitenedFeatures, penalty: torch.Tensor) -> None:
        self.data, self.penalty = data, penalty

    def point(self, active: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> _Point:
        loss, grad_weight, grad_bias, spread = self.data.evaluate(active, weight, bias)
        penalty = self.penalty[active, None, None]
        spread = spread.clamp(min=1e-8)
        return _Point(
            active,
            weight,
            bias,
            loss + 0.5 * (penalty * weight.square()).sum(dim=(1, 2)),
            grad_weight + penalty * weight,
            grad_bias,
            spread[:, None] * self.data.values[active][..., None] + penalty,  # (A, C, K)
            spread,
        )

    @staticmethod
    def norm(at: _Point) -> torch.Tensor:
        """Compute the preconditioned norm of the gradient, `(A,)`."""
        by_weight = (at.grad_weight.square() / at.scale_weight).sum(dim=(1, 2))
        return (by_weight + (at.grad_bias.square() / at.scale_bias).sum(dim=1)).sqrt()

    def newton_step(self, at: _Point) -> tuple[torch.Tensor, _Point]:
        """Take one step, halved until the loss falls; return which sets moved, and where they are."""
        by_weight, by_bias = self._direction(at)
        slope = _dot(at.grad_weight, at.grad_bias, by_weight, by_bias)  # (A,), below 0
        length, accepted = torch.ones_like(slope), torch.zeros(len(slope), dtype=torch.bool)
        found = {name: getattr(at, name).clone() for name in at.__dataclass_fields__}
        for _ in range(HALVINGS):
            left = ~accepted
            trial = self.point(
                at.active[left],
                at.weight[left] + length[left, None, None] * by_weight[left],
                at.bias[left] + length[left, None] * by_bias[left],
            )
            allowed = at.loss[left] + ARMIJO * length[left] * slope[left] + ROUNDING * at.loss[left].abs()
            good = trial.loss <= allowed
            index = left.nonzero().flatten()[good]
            for name, values in found.items():
                values[index] = getattr(trial, name)[good]
            accepted[index] = True
            if accepted.all():
                break
            length[~accepted] /= 2
        return accepted, _Point(**found)

    def _direction(self, at: _Point) -> tuple[torch.Tensor, torch.Tensor]:
        """Solve H d = -g by preconditioned conjugate gradients, up to a small residual."""
        product = self.data.curvature(at.active, at.weight, at.bias)
        penalty = self.penalty[at.active, None, None]
        x_weight, x_bias = torch.zeros_like(at.weight), torch.zeros_like(at.bias)
        r_weight, r_bias = -at.grad_weight, -at.grad_bias
        z_weight, z_bias = r_weight / at.scale_weight, r_bias / at.scale_bias
        p_weight, p_bias = z_weight, z_bias
        rz = first = _dot(r_weight, r_bias, z_weight, z_bias)  # (A,)
        for _ in range(CG_STEPS):
            h_weight, h_bias = product(p_weight, p_bias)
            h_weight = h_weight + penalty * p_weight
            bend = _dot(p_weight, p_bias, h_weight, h_bias)
            going = (rz > FORCING**2 * first) & (bend > 0)
            if not going.any():
                break
            alpha = torch.where(going, rz / bend, 0.0)
            x_weight, x_bias = x_weight + alpha[:, None, None] * p_weight, x_bias + alpha[:, None] * p_bias
            r_weight, r_bias = r_weight - alpha[:, None, None] * h_weight, r_bias - alpha[:, None] * h_bias
            z_weight, z_bias = r_weight / at.scale_weight, r_bias / at.scale_bias
            previous, rz = rz, _dot(r_weight, r_bias, z_weight, z_bias)
            beta = torch.where(going, rz / previous, 0.0)
            p_weight, p_bias = z_weight + beta[:, None, None] * p_weight, z_bias + beta[:, None] * p_bias
            if not (rz > FORCING**2 * first).any():
                break
        return x_weight, x_bias


def _dot(a_weight: torch.Tensor, a_bias: torch.Tensor, b_weight: torch.Tensor, b_bias: torch.Tensor) -> torch.Tensor:
    """Compute the inner product of two directions, `(A,)`."""
    return (a_weight * b_weight).sum(dim=(1, 2)) + (a_bias * b_bias).sum(dim=1)
