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
ABSENT = 1e4  # by how much the bias of a class without examples is below the others; at the optimum it is infinite


@dataclass(frozen=True)
class Solution:
    """Logistic regressions of F feature sets in the whitened basis: weights and biases `theta` `(F, C + 1, K)`.

    Of each `(F,)`: the penalised `loss`, the relative `gradient` norm, whether it `converged`, Newton's `iterations`.
    """

    theta: torch.Tensor
    loss: torch.Tensor
    gradient: torch.Tensor
    converged: torch.Tensor
    iterations: torch.Tensor


class WhitenedFeatures:
    """Standardised features of some sets, rotated into the eigenbasis of their covariance.

    The rotation leaves the L2 penalty as it is. Each direction has its eigenvalue as variance, so that a diagonal
    preconditioner does what a full one would.

    Args:
        parts (`Sequence[tuple]`): Features `(m, F, C)` and classes `(m,)`, one part after the other.
        sets (`slice`): The feature sets taken.
        moments ([`~ldae.evaluation.grid_probes.Moments`]): Those of these parts and sets, over the n examples of all
            processes, of which this one may have m.
        memory (`int`): Bytes of features that may be kept; beyond it they are read and rotated anew in each pass.
    """

    def __init__(self, parts: Sequence[Part], sets: slice, moments: Moments, memory: int) -> None:
        self.parts, self.sets, self.n, self.reduce = parts, sets, moments.n, moments.reduce
        self.mean = moments.mean  # (F, C)
        self.std, self.values, self.vectors = moments.standardise()
        counts = moments.y
        self.num_classes = len(counts)
        self.present = counts.nonzero().flatten()  # (K',): classes with examples
        self.prior = (counts[self.present] / moments.n).log()  # (K',)
        place = torch.full((self.num_classes,), -1, dtype=torch.long)
        place[self.present] = torch.arange(len(self.present))
        self.labels = torch.cat([place[labels.cpu()] for _, labels in parts])  # (m,), among classes with examples
        self.kept: torch.Tensor | None = None
        self.probabilities: torch.Tensor | None = None  # (F, m, K'), of the latest evaluation of each set
        m, (count, c) = len(self.labels), self.mean.shape
        if 4 * count * m * c <= memory:
            kept = torch.empty(count, m, c)
            for rows, z in self._read():
                kept[:, rows] = z
            self.kept = kept
            self.probabilities = torch.empty(count, m, len(self.present))

    def start_at(self, raw: torch.Tensor) -> torch.Tensor:
        """Turn weights `(F, C, K)` of raw features and all classes into `theta`; biases are the classes' shares."""
        weight = self.vectors.mT @ (raw * self.std[..., None])
        return torch.cat([weight[..., self.present], self.prior.expand(len(raw), 1, -1)], dim=1)

    def unwhiten(self, theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Turn `theta` into weights `(F, C, K)` and biases `(F, K)` of raw features and all classes."""
        found = (self.vectors @ theta[:, :-1]) / self.std[..., None]  # (F, C, K')
        bias = theta[:, -1] - (self.mean[:, None] @ found)[:, 0]  # (F, K')
        full_weight = found.new_zeros(*self.mean.shape, self.num_classes)
        full_bias = (bias.amin(dim=1, keepdim=True) - ABSENT).repeat(1, self.num_classes)
        full_weight[..., self.present], full_bias[:, self.present] = found, bias
        return full_weight, full_bias

    def evaluate(self, active: torch.Tensor, theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute the mean cross-entropy of the sets `active` `(A,)` at weights and biases `(A, C + 1, K)`.

        Returns:
            `(loss (A,), gradient (A, C + 1, K), mean of p (1 - p) (A, K))`.
        """
        loss, gradient, spread = theta.new_zeros(len(active)), torch.zeros_like(theta), torch.zeros_like(theta[:, 0])
        w, b = theta[:, :-1].float(), theta[:, -1:].float()
        for rows, z in self._pieces(active):
            y = self.labels[rows]
            log_p = torch.baddbmm(b, z, w).log_softmax(dim=-1)  # (A, b, K)
            loss -= log_p.gather(2, y.expand(len(active), -1)[..., None]).sum(dim=(1, 2), dtype=torch.float64)
            p = log_p.exp()
            if self.probabilities is not None:
                self.probabilities[active, rows] = p
            spread += (p - p.square()).sum(dim=1)
            residual = p - F.one_hot(y, p.shape[2])
            gradient[:, :-1] += z.mT @ residual
            gradient[:, -1] += residual.sum(dim=1)
        loss, gradient, spread = (self.reduce(total) / self.n for total in (loss, gradient, spread))
        return loss, gradient, spread

    def curvature(self, active: torch.Tensor, theta: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the function that multiplies by the Hessian of the cross-entropy at a point that was evaluated."""
        w, b = theta[:, :-1].float(), theta[:, -1:].float()

        def product(direction: torch.Tensor) -> torch.Tensor:
            found = torch.zeros_like(direction)
            dw, db = direction[:, :-1].float(), direction[:, -1:].float()
            for rows, z in self._pieces(active):
                if self.probabilities is None:
                    p = torch.baddbmm(b, z, w).softmax(dim=-1)
                else:
                    p = self.probabilities[active, rows]
                u = torch.baddbmm(db, z, dw)  # (A, b, K)
                change = p * (u - (p * u).sum(dim=-1, keepdim=True))
                found[:, :-1] += z.mT @ change
                found[:, -1] += change.sum(dim=1)
            return self.reduce(found) / self.n

        return product

    def _pieces(self, active: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield ranges of examples and their features `(A, b, C)` in float32."""
        if self.kept is None:
            for rows, z in self._read():
                yield rows, z[active]
            return
        every = len(active) == len(self.kept)
        step = max(1, ROWS_BYTES // (4 * len(active) * self.kept.shape[2]))
        for begin in range(0, len(self.labels), step):
            rows = slice(begin, min(begin + step, len(self.labels)))
            yield rows, self.kept[:, rows] if every else self.kept[active, rows]

    def _read(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Read and rotate all features: yield ranges of examples and features `(F, b, C)`."""
        rotation, begin = self.vectors / self.std[..., None], 0
        for features, _ in self.parts:
            for piece in pieces_of(features, copies=8):
                x = piece[:, self.sets].cpu().double().transpose(0, 1)  # (F, b, C)
                yield slice(begin, begin + x.shape[1]), ((x - self.mean[:, None]) @ rotation).float()
                begin += x.shape[1]


def solve_logistic(
    data: WhitenedFeatures,
    penalty: torch.Tensor,
    start: torch.Tensor | None = None,
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
        start (`torch.Tensor` of shape `(F, C + 1, K)`, *optional*): Weights and biases to start at; by default zero
            weights and the classes' shares.
        tolerance (`float`): Relative gradient norm to reach.
        max_iterations (`int`): Most Newton steps.
    """
    count = len(data.mean)
    zero = data.start_at(data.mean.new_zeros(*data.mean.shape, data.num_classes))
    everything = torch.arange(count)
    problem = _Problem(data, penalty)
    reference = problem.norm(problem.point(everything, zero))
    theta = (zero if start is None else start).clone()
    loss, gradient = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    iterations, active = torch.zeros(count, dtype=torch.long), everything
    at = problem.point(active, theta)
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
        theta[at.active], loss[at.active] = at.theta, at.loss
        iterations[at.active] += 1
        at = at.select(moved)  # what cannot be improved any more stays where it is
        active = at.active
        if len(active) == 0:
            break
    return Solution(theta, loss, gradient, gradient <= tolerance, iterations)


@dataclass(frozen=True)
class _Point:
    """Weights and biases of the sets `active` with their loss, gradient and preconditioner, `(A, C + 1, K)` each."""

    active: torch.Tensor
    theta: torch.Tensor
    loss: torch.Tensor
    gradient: torch.Tensor
    scale: torch.Tensor

    def select(self, mask: torch.Tensor) -> "_Point":
        """Keep some of the sets."""
        return self if mask.all() else _Point(*(getattr(self, name)[mask] for name in self.__dataclass_fields__))


class _Problem:
    """The penalised objective of [`solve_logistic`]."""

    def __init__(self, data: WhitenedFeatures, penalty: torch.Tensor) -> None:
        self.data = data
        self.penalty = penalty[:, None, None].repeat(1, data.mean.shape[1] + 1, 1)  # (F, C + 1, 1)
        self.penalty[:, -1] = 0  # of the biases

    def point(self, active: torch.Tensor, theta: torch.Tensor) -> _Point:
        loss, gradient, spread = self.data.evaluate(active, theta)
        penalty, spread = self.penalty[active], spread.clamp(min=1e-8)[:, None]
        values = F.pad(self.data.values[active], (0, 1), value=1)  # (A, C + 1); of the biases 1
        loss = loss + 0.5 * _total(penalty * theta.square())
        return _Point(active, theta, loss, gradient + penalty * theta, spread * values[..., None] + penalty)

    @staticmethod
    def norm(at: _Point) -> torch.Tensor:
        """Compute the preconditioned norm of the gradient, `(A,)`."""
        return _total(at.gradient.square() / at.scale).sqrt()

    def newton_step(self, at: _Point) -> tuple[torch.Tensor, _Point]:
        """Take one step, halved until the loss falls; return which sets moved, and where they are."""
        direction = self._direction(at)
        slope = _total(at.gradient * direction)  # (A,), below 0
        length, accepted = torch.ones_like(slope), torch.zeros(len(slope), dtype=torch.bool)
        found = {name: getattr(at, name).clone() for name in at.__dataclass_fields__}
        for _ in range(HALVINGS):
            left = ~accepted
            trial = self.point(at.active[left], at.theta[left] + length[left, None, None] * direction[left])
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

    def _direction(self, at: _Point) -> torch.Tensor:
        """Solve H d = -g by preconditioned conjugate gradients, up to a small residual."""
        product, penalty = self.data.curvature(at.active, at.theta), self.penalty[at.active]
        x, r = torch.zeros_like(at.theta), -at.gradient
        z = r / at.scale
        p = z
        rz = first = _total(r * z)  # (A,)
        for _ in range(CG_STEPS):
            h = product(p) + penalty * p
            bend = _total(p * h)
            going = (rz > FORCING**2 * first) & (bend > 0)
            if not going.any():
                break
            alpha = torch.where(going, rz / bend, 0.0)[:, None, None]
            x, r = x + alpha * p, r - alpha * h
            z = r / at.scale
            previous, rz = rz, _total(r * z)
            p = z + torch.where(going, rz / previous, 0.0)[:, None, None] * p
            if not (rz > FORCING**2 * first).any():
                break
        return x


def _total(terms: torch.Tensor) -> torch.Tensor:
    """Sum the terms `(A, C + 1, K)` of each set, those of weights and those of biases by themselves."""
    return terms[:, :-1].sum(dim=(1, 2)) + terms[:, -1].sum(dim=1)
