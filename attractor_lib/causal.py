r"""A causal attractor network of letters: its pseudo-likelihood is its likelihood.

Site i of a text is a Potts spin s_i, one of V letters. It hears the sites before it, as far back as
`context`, and a start, which counts as the site before the first. The letters before it are known:
it asks with them, and a site that is heard shows its letter and those before that. For each head,
with m = 1 ... n_known and the letter "start" before the text::

    q_i    = sum_m Q_m[s_{i-m}] ,     k_j = sum_m K_m[s_{j+1-m}]
    t_ij   = q_i . k_j + r_{i-j}                                         for the j < i that i hears
    f_i(v) = b_v + sum_m W_m[s_{i-m}, v]
    e_i(v) = -f_i(v) - sum_h log sum_j exp(t^h_ij + U^h_v . k^h_j)       the exact form
    e_i(v) = -f_i(v) - sum_h sum_j a^h_ij U^h_v . k^h_j ,  a_ij = softmax_j(t_ij)    the field form
    p(s_i = v | s_<i) = exp(-e_i(v)) / sum_v' exp(-e_i(v'))

The exact form is the local energy of the attractor network, with a spin that asks by U_v and is one
of the letters. The field form is its first order in U, up to a constant in v: minus the letter
times the field at a site whose own letter is not known and does not ask. Where a stage before hands
on hidden spins z (`CausalCascade`), Qz z_i, Kz z_{j+1} and Wz z_i are added to q_i, k_j and f_i
(20_causal_network).

In the code position i stands for what is known before letter i, which is what site i asks with, and
what site i - 1 shows. So in a text "abc" position 1 knows a: it asks for b, and is heard by
positions 1 and 2. Positions hear themselves and those before; position 0 shows the start.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attractor_lib.checkpoint import fingerprint
from attractor_lib.checks import check_number, check_whole
from attractor_lib.learning import Gradients
from attractor_lib.states import check_mask, is_finite


class Field:
    """What the heads add to -e_i(v): sum_h U^h_v . o^h_i, with o_i = sum_j a_ij k_j."""

    def show(self, k: Tensor, U: Tensor) -> tuple[Tensor, ...]:
        """What positions show: keys (batch, heads, T, r) first."""
        return (k,)

    def answer(self, t: Tensor, U: Tensor, k: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Of scores t (batch, heads, T, T), U (V, heads, r) and what is shown: (batch, T, V), and
        what `pull_back` needs of it.
        """
        a = t.softmax(-1)
        o = a @ k
        return torch.einsum("mhir,vhr->miv", o, U), (a, o)

    def pull_back(self, d: Tensor, U: Tensor, k: Tensor, *, kept) -> tuple[Tensor, Tensor, Tensor]:
        """Of the gradient d of the answer those of t, of the keys but for what comes through t, and
        of U.
        """
        a, o = kept
        g = torch.einsum("miv,vhr->mhir", d, U)
        z = g @ k.mT
        z -= torch.einsum("mhij,mhij->mhi", a, z)[..., None]
        return z.mul_(a), a.mT @ g, torch.einsum("miv,mhir->vhr", d, o)


class Exact:
    """The same of the exact form, sum_h log sum_j exp(t^h_ij) exp(U^h_v . k^h_j): for each head one
    matrix product.
    """

    def show(self, k: Tensor, U: Tensor) -> tuple[Tensor, ...]:
        return k, (k @ U.permute(1, 2, 0)).exp_()

    def answer(
        self, t: Tensor, U: Tensor, k: Tensor, G: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        highest = t.amax(-1, keepdim=True)
        E = (t - highest).exp_()
        total = E @ G
        numbers = torch.finfo(total.dtype)
        lost = G.amax() * (numbers.tiny / numbers.eps)  # by what is too small for E
        if not lost < total.amin():  # infinity and NaN fail too
            raise FloatingPointError(f"U_v . k_j are too far apart for {total.dtype}")
        return (total.log() + highest).sum(1), (E, total)

    def pull_back(
        self, d: Tensor, U: Tensor, k: Tensor, G: Tensor, *, kept
    ) -> tuple[Tensor, Tensor, Tensor]:
        E, total = kept
        c = d[:, None] / total  # E_ij c_iv G_jv: j's share of what v has, posterior minus prior
        du = (E.mT @ c).mul_(G)
        return (c @ G.mT).mul_(E), du @ U.transpose(0, 1), torch.einsum("mhjv,mhjr->vhr", du, k)


class CausalModel(nn.Module):
    """What a network and a cascade have in common: all that follows from their ``energies``."""

    def log_conditionals(self, letters: Tensor, *given, **named) -> Tensor:
        """log p(letter t | those before), for each letter that it may be: (batch, T, n_letters).

        Arguments are those of `energies`. The sum over t at the letters themselves is the log
        probability of the whole text.
        """
        return (-self.energies(letters, *given, **named)).log_softmax(-1)

    def update(self, letters: Tensor) -> Tensor:
        """The letter of least energy at each site, given those before it: (batch, T).

        After t updates the first t letters are the same for all texts, and stay.
        """
        return self.energies(letters).argmin(-1)

    @torch.no_grad()
    def generate(
        self,
        prompt: Tensor,
        n: int,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        window: int | None = None,
    ) -> Tensor:
        """The prompt and n letters more, each drawn given those before.

        Args:
            prompt: whole numbers (T,) or (batch, T); T may be 0.
            n: >= 0.
            temperature: letters have probabilities proportional to exp(-e_i / temperature); at 0
                the likeliest is taken.
            generator: on the network's device; without it, seed 0.
            window: where given, each letter is drawn as if the text had begun so many letters
                before it. A network that was trained on pieces, each with a start before it, has
                not seen what lies beyond a piece; window is then the length of a piece less one.

        Returns:
            (T + n,) or (batch, T + n).

        Raises:
            ValueError: for a prompt that is none, n, a temperature or a window out of range, for
                energies that are NaN, and for a network with hidden spins, which a cascade has to
                give.
        """
        check_whole("n", n, 0)
        if window is not None:
            check_whole("window", window, 1)
        check_number("temperature", temperature, 0)
        if not isinstance(prompt, Tensor) or prompt.ndim not in (1, 2):
            got = tuple(prompt.shape) if isinstance(prompt, Tensor) else type(prompt).__name__
            raise ValueError(f"prompt must be a tensor of shape (T,) or (batch, T), got {got}")
        prompt = prompt if prompt.numel() else prompt.long()  # torch makes an empty list of floats
        text = self.check(prompt if prompt.ndim == 2 else prompt[None], "prompt").long()
        generator = generator or torch.Generator(text.device).manual_seed(0)
        for _ in range(n):
            recent = text[:, max(0, text.shape[1] - (window or self.reach)) :]
            e = self.energies(F.pad(recent, (0, 1)))[:, -1].double()  # whatever the last letter is
            if e.isnan().any():
                raise ValueError(
                    "energies must be numbers to draw a letter, got NaN: see the parameters"
                )
            if temperature == 0:
                letter = e.argmin(-1, keepdim=True)
            else:
                e = e - e.amin(-1, keepdim=True)
                letter = (-e / temperature).softmax(-1).multinomial(1, generator=generator)
            text = torch.cat([text, letter], 1)
        return text[0] if prompt.ndim == 1 else text


class CausalNetwork(CausalModel):
    """Letters that each have a local energy, given those before (see the module).

    Args:
        n_letters: V >= 2. Letters are whole numbers from 0 to V - 1.
        context: how many sites before its own a site hears, the start included; >= 1. Texts may be
            longer.
        n_known: how many letters before it a site asks with; >= 1.
        n_heads, rank: of the attention; >= 1.
        exact: the exact form, or the field form.
        generator: a CPU ``torch.Generator`` for the initial parameters; without it, seed 0.
        n_hidden: components of a hidden spin z_i that a stage before leaves (`CausalCascade`); they
            are known to the site as letters are: q_i, k_{i-1} and f_i are linear in them.

    Attributes:
        Q, K: (n_known, V + 1, heads, rank), the last letter the one before the text.
        U: (V, heads, rank).
        W: (n_known, V + 1, V).
        r: (heads, context), of the distances 1 to context.
        bias: (V,).
        Qz, Kz, Wz: (n_hidden, heads, rank) twice, and (n_hidden, V), if there are hidden spins.

    Raises:
        ValueError: for numbers out of range; and from every method for letters that are none.
    """

    def __init__(
        self,
        n_letters: int,
        context: int,
        n_known: int = 4,
        n_heads: int = 8,
        rank: int = 16,
        exact: bool = False,
        generator: torch.Generator | None = None,
        *,
        n_hidden: int = 0,
    ):
        super().__init__()
        least = {"n_letters": (n_letters, 2), "context": (context, 1), "n_known": (n_known, 1)}
        least |= {"n_heads": (n_heads, 1), "rank": (rank, 1), "n_hidden": (n_hidden, 0)}
        for name, (value, low) in least.items():
            check_whole(name, value, low)
        self.n_letters, self.context, self.n_known = n_letters, context, n_known
        self.n_heads, self.rank, self.n_hidden = n_heads, rank, n_hidden
        self.exact, self.form = exact, Exact() if exact else Field()
        generator = generator or torch.Generator().manual_seed(0)

        def parameter(*shape: int, std: float = 0.0) -> nn.Parameter:
            values = std * torch.randn(shape, generator=generator) if std else torch.zeros(shape)
            return nn.Parameter(values, requires_grad=False)

        std = rank**-0.25  # then q_i . k_j is of order one
        for name in ("Q", "K"):
            sizes = n_known, n_letters + 1, n_heads, rank
            setattr(self, name, parameter(*sizes, std=std * n_known**-0.5))
        self.U = parameter(n_letters, n_heads, rank, std=0.1 * std)
        self.W = parameter(n_known, n_letters + 1, n_letters)
        self.r = parameter(n_heads, context)
        self.bias = parameter(n_letters)
        if n_hidden:
            for name in ("Qz", "Kz"):
                setattr(self, name, parameter(n_hidden, n_heads, rank, std=std * n_hidden**-0.5))
            self.Wz = parameter(n_hidden, n_letters)

    def check(self, letters: Tensor, name: str = "letters") -> Tensor:
        """letters, if whole numbers (batch, T) from 0 to n_letters - 1; else ValueError."""
        check_letters(letters, self.n_letters, name)
        if letters.device != self.bias.device:
            raise ValueError(f"{name} must be on {self.bias.device}, got {letters.device}")
        return letters

    def energies(self, letters: Tensor, hidden: Tensor | None = None) -> Tensor:
        """e_i(v) of each site given the letters before it: (batch, T, n_letters).

        Args:
            letters: whole numbers (batch, T), T >= 0.
            hidden: z (batch, T, n_hidden), where there are hidden spins.

        Raises:
            FloatingPointError: in the exact form, for U_v . k_j beyond what exp can tell apart.
        """
        self._check(letters, hidden)
        q, k, minus_e = self._known(letters, hidden)
        shown = self.form.show(k, self.U)
        for some, i, j, r, _ in self._parts(*letters.shape):
            t = scores(q[some, :, i], k[some, :, j], r)
            minus_e[some, i] += self.form.answer(t, self.U, *(x[some, :, j] for x in shown))[0]
        return -minus_e

    def attention(self, letters: Tensor, hidden: Tensor | None = None) -> Tensor:
        """softmax_j(t_ij) of letter i's site (batch, heads, T, T); index j = 0 is the start, j > 0
        the site of letter j - 1. In the exact form it is what j has before the letter is known.
        """
        self._check(letters, hidden)
        q, k, _ = self._known(letters, hidden)
        everywhere = slice(0, letters.shape[1])
        return scores(q, k, self._distances(everywhere, everywhere)[0]).softmax(-1)

    def pooled(self, letters: Tensor, hidden: Tensor | None = None) -> Tensor:
        """o_i = sum_j a_ij k_j of all heads, with that attention: (batch, T, heads, rank)."""
        self._check(letters, hidden)
        q, k, _ = self._known(letters, hidden)
        o = torch.empty_like(q)
        for some, i, j, r, _ in self._parts(*letters.shape):
            k_j = k[some, :, j]
            o[some, :, i] = scores(q[some, :, i], k_j, r).softmax(-1) @ k_j
        return o.transpose(1, 2)

    @property
    def reach(self) -> int:
        """On how many letters before it a letter can depend, without hidden spins."""
        return self.context - 1 + self.n_known

    def _check(self, letters: Tensor, hidden: Tensor | None) -> None:
        self.check(letters)
        if hidden is None and not self.n_hidden:
            return
        shape = (*letters.shape, self.n_hidden)
        if hidden is None:
            raise ValueError(
                f"hidden must have shape {shape}, got None: a CausalCascade has what the stage "
                "before leaves"
            )
        if not self.n_hidden:
            raise ValueError("hidden must be None, as n_hidden is 0")
        if (hidden.shape, hidden.dtype) != (shape, self.bias.dtype):
            got = f"{hidden.dtype} of shape {tuple(hidden.shape)}"
            raise ValueError(f"hidden must be {self.bias.dtype} of shape {shape}, got {got}")
        if not is_finite(hidden):
            raise ValueError("hidden must be finite, got NaN or infinity")

    def _known(self, letters: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """What is known at each position makes queries and keys (batch, heads, T, rank), and f
        (batch, T, V)::

            q = sum_m Q_m[s_{i-m}] + Qz z_i ,    k and f alike: looked up side by side
        """
        table = torch.cat([self.Q.flatten(2), self.K.flatten(2), self.W], -1).flatten(0, 1)
        values = F.embedding_bag(self._rows(letters), table, mode="sum")
        if hidden is not None:
            of_hidden = torch.cat([self.Qz.flatten(1), self.Kz.flatten(1), self.Wz], 1)
            values = values + hidden.flatten(0, 1) @ of_hidden
        q, k, f = self._split(values.view(*letters.shape, values.shape[1]))
        return q.contiguous(), k.contiguous(), f + self.bias

    def _rows(self, letters: Tensor) -> Tensor:
        """Of Q, K and W, letter after letter, those that are known: (batch T, n_known)."""
        known = known_letters(letters, self.n_known, self.n_letters).flatten(0, 1)
        return known + (self.n_letters + 1) * torch.arange(self.n_known, device=letters.device)

    def _split(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Views of queries, keys (batch, heads, T, rank) and f (batch, T, V)."""
        width = self.n_heads * self.rank
        q, k, f = values.split([width, width, self.n_letters], -1)
        q, k = (x.unflatten(-1, (self.n_heads, self.rank)).transpose(1, 2) for x in (q, k))
        return q, k, f

    def _gradients(self, letters: Tensor, hidden: Tensor | None, of_values: Tensor) -> Gradients:
        """Of the gradients of q, k and f, side by side (batch, T, ...), those of their tables."""
        values = of_values.flatten(0, 1)
        table = values.new_zeros(self.n_known * (self.n_letters + 1), values.shape[1])
        for rows in self._rows(letters).unbind(1):
            table.index_add_(0, rows, values)
        of = {"": table} | ({} if hidden is None else {"z": hidden.flatten(0, 1).mT @ values})
        width, found = self.n_heads * self.rank, {}
        for suffix, g in of.items():
            for name, part in zip("QKW", g.split([width, width, self.n_letters], -1)):
                found[name + suffix] = part.reshape(getattr(self, name + suffix).shape)
        return found | {"bias": values[:, 2 * width :].sum(0)}

    def _distances(self, i: slice, j: slice) -> tuple[Tensor, Tensor]:
        """r_{i-j} (heads, |i|, |j|), -inf for what is not heard; and which distance that is,
        `context` if it is none.
        """
        at = torch.arange(max(i.stop, j.stop), device=self.r.device)
        back = at[i, None] - at[j]
        back = back.masked_fill((back < 0) | (back >= self.context), self.context)
        return F.pad(self.r, (0, 1), value=-math.inf)[:, back], back

    def _parts(self, n: int, length: int) -> Iterator[tuple[slice, slice, slice, Tensor, Tensor]]:
        """Some of n examples and positions i at a time, and the j that they hear, beside what
        `_distances` returns: so many that their scores stay in the processor's cache.
        """
        for first in range(0, length, 64):
            i = slice(first, min(first + 64, length))
            j = slice(max(0, first - self.context + 1), i.stop)
            r, back = self._distances(i, j)
            at_once = max(1, 2**19 // r.numel())
            for m in range(0, n, at_once):
                yield slice(m, m + at_once), i, j, r, back

    def extra_repr(self) -> str:
        names = "n_letters", "context", "n_known", "n_heads", "rank", "exact", "n_hidden"
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)


def scores(q: Tensor, k: Tensor, r: Tensor) -> Tensor:
    """t_ij = q_i . k_j + r_{i-j} (batch, heads, i, j)."""
    return (q @ k.mT).add_(r)


def check_letters(letters: Tensor, n_letters: int, name: str = "letters") -> Tensor:
    """letters, if they are whole numbers (batch, T) from 0 to n_letters - 1.

    Raises:
        ValueError: for anything else.
    """
    if not isinstance(letters, Tensor) or letters.ndim != 2:
        got = tuple(letters.shape) if isinstance(letters, Tensor) else type(letters).__name__
        raise ValueError(f"{name} must be a tensor of shape (batch, T), got {got}")
    if letters.is_floating_point() or letters.is_complex() or letters.dtype == torch.bool:
        raise ValueError(f"{name} must be whole numbers, got {letters.dtype}")
    if letters.numel() and not (letters.min() >= 0 and letters.max() < n_letters):
        got = f"{letters.min().item()} to {letters.max().item()}"
        raise ValueError(f"{name} must be from 0 to {n_letters - 1}, got {got}")
    return letters


def known_letters(letters: Tensor, n_known: int, start: int) -> Tensor:
    """The n_known letters before each, the nearest first; `start` before the text."""
    padded = F.pad(letters.long(), (n_known, 0), value=start)
    return padded.unfold(1, n_known, 1)[:, :-1].flip(-1)


@torch.no_grad()
def causal_rule(
    network: CausalNetwork,
    letters: Tensor,
    target: Tensor | None = None,
    sites: Tensor | None = None,
    *,
    hidden: Tensor | None = None,
) -> tuple[Tensor, Gradients]:
    """The likelihood of texts, and its gradients in closed form: no autograd::

        L        = -1/n sum_i log p(s_i | s_<i)                over the n letters that count
        d_i(v)   = dL/d(-e_i(v)) = 1/n ( p(v | s_<i) - [v = s_i] )
        dL/dt_ij = sum_v d_i(v) w_ij(v) ,    w_ij(v) the share of j in the sum over j for v

    and in the field form dL/dt_ij is how attention answers g_i = sum_v d_i(v) U_v, as in
    `prediction_rule`. Then q_i and k_j have sum_j dL/dt_ij k_j and sum_i dL/dt_ij q_i, k_j besides
    what comes through U_v . k_j: a key is told by all sites that hear it, by no other stage.

    Args:
        network: whose parameters the gradients are of.
        letters: whole numbers (batch, T).
        target: None or the letters themselves. A site's own letter is not an input of its energy,
            so there is nothing else that it could be told to be.
        sites: boolean (T,) or (batch, T), the letters that count; None for all.
        hidden: of the stages before, as for ``network.energies``.

    Returns:
        The loss in nats a letter, and the gradients by the names of the parameters.

    Raises:
        ValueError: for letters that the network refuses, none that count, another target, or sites
            of another form.
    """
    if not isinstance(network, CausalNetwork):
        raise ValueError(f"network must be a CausalNetwork, got {type(network).__name__}")
    network._check(letters, hidden)
    if not (target is None or target is letters or torch.equal(target, letters)):
        raise ValueError("target must be the letters themselves, or None, got others")
    if sites is None:
        sites = torch.ones_like(letters, dtype=torch.bool)
    sites = check_mask(sites, letters, "sites").expand(letters.shape)
    if not (n := int(sites.sum())):
        raise ValueError("at least one letter must count, got none")
    q, k, f = network._known(letters, hidden)
    shown, s = network.form.show(k, network.U), letters.long()[..., None]
    gradient = q.new_zeros(*letters.shape, 2 * network.n_heads * network.rank + network.n_letters)
    dq, dk, df = network._split(gradient)  # views: what is put into them is in the gradient
    loss, dU, dr = 0.0, torch.zeros_like(network.U), F.pad(torch.zeros_like(network.r), (0, 1))
    for some, i, j, r, back in network._parts(*letters.shape):
        counts, (k_j, *others) = sites[some, i, None], [x[some, :, j] for x in shown]
        t = scores(q[some, :, i], k_j, r)
        heads, kept = network.form.answer(t, network.U, k_j, *others)
        log_p = (f[some, i] + heads).log_softmax(-1)
        loss = loss - (log_p.gather(-1, s[some, i]) * counts).sum()
        data = -torch.ones_like(log_p[..., :1])
        d = log_p.exp().scatter_add_(-1, s[some, i], data).mul_(counts)
        dt, dk_j, dU_part = network.form.pull_back(d, network.U, k_j, *others, kept=kept)
        df[some, i], dq[some, :, i] = d, dt @ k_j
        dk[some, :, j] += dk_j.add_(dt.mT @ q[some, :, i])
        dr.index_add_(1, back.flatten(), dt.sum(0).flatten(1))
        dU += dU_part
    gradients = network._gradients(letters, hidden, gradient) | {"U": dU, "r": dr[:, :-1]}
    return loss / n, {name: g / n for name, g in gradients.items()}


class CausalCascade(CausalModel):
    """Causal networks one after the other: each hands on hidden spins, the last has the energies.

    A stage is trained by the causal rule alone (`StageRule`): nothing passes back to the stages
    before. Stage t + 1 knows of each site the hidden spin z_i = P[o_i], where o_i are the pooled
    keys of all heads of stage t.

    Args:
        stages: the networks, in turn; more by `add`. Without any there are no energies yet.

    Raises:
        ValueError: for a stage of another alphabet, or with other hidden spins than the stage
            before leaves.
    """

    def __init__(self, *stages: CausalNetwork):
        super().__init__()
        self.stages = nn.ModuleList()
        for stage in stages:
            self.add(stage)

    def __len__(self) -> int:
        return len(self.stages)

    @property
    def n_hidden(self) -> int:
        """Of the next stage."""
        return self.stages[-1].n_heads * self.stages[-1].rank if self.stages else 0

    @property
    def reach(self) -> int:
        """On how many letters before it a letter can depend."""
        known = 0
        for stage in self.stages:
            known = stage.context - 1 + max(stage.n_known, known)
        return known

    def add(self, stage: CausalNetwork) -> "CausalCascade":
        """Append a stage, when it is trained."""
        if any(stage is one for one in self.stages):
            raise ValueError("stage must be a network of its own, got one that is there already")
        letters = self.stages[0].n_letters if self.stages else stage.n_letters
        if (stage.n_letters, stage.n_hidden) != (letters, self.n_hidden):
            raise ValueError(
                f"stage must have n_letters={letters} and n_hidden={self.n_hidden}, got "
                f"{stage.n_letters} and {stage.n_hidden}"
            )
        self.stages.append(stage)
        return self

    def check(self, letters: Tensor, name: str = "letters") -> Tensor:
        """As `CausalNetwork.check`."""
        if not self.stages:
            raise ValueError("a cascade must have a stage before it knows any letters, got none")
        return self.stages[0].check(letters, name)

    def leaves(self, letters: Tensor) -> Tensor | None:
        """The hidden spins that the stage to come is given, (batch, T, n_hidden); None for the
        first.
        """
        hidden = None
        for stage in self.stages:
            hidden = F.normalize(stage.pooled(letters, hidden).flatten(2), dim=-1)
        return hidden

    def energies(self, letters: Tensor) -> Tensor:
        """e_i(v) of the last stage: (batch, T, n_letters)."""
        self.check(letters)
        *before, last = self.stages
        return last.energies(letters, CausalCascade(*before).leaves(letters))


@dataclass(repr=False)
class StageRule:
    """`causal_rule` for the stage that comes after a cascade's, which stay as they are.

    Args:
        cascade: the stages before.
        dropout: the part of the hidden spins' components that a site does not see, drawn anew for
            each site and step; 0 <= dropout < 1. It keeps the stage from learning by heart.
        seed: of what is drawn.

    Raises:
        ValueError: for a dropout out of range.
    """

    cascade: CausalCascade
    dropout: float = 0.0
    seed: int = 0

    def __post_init__(self):
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and less than 1, got {self.dropout}")
        self._generator = torch.Generator().manual_seed(self.seed)

    def __repr__(self) -> str:
        drawn = f"dropout={self.dropout}, seed={self.seed}"
        return f"StageRule({self.cascade!r}, {fingerprint(self.cascade)}, {drawn})"

    def __call__(
        self,
        network: CausalNetwork,
        letters: Tensor,
        target: Tensor | None = None,
        sites: Tensor | None = None,
    ) -> tuple[Tensor, Gradients]:
        hidden = self.cascade.leaves(letters)
        if self.dropout and hidden is not None:
            seen = torch.rand(hidden.shape, generator=self._generator) >= self.dropout
            hidden = hidden * seen.to(hidden) / (1 - self.dropout)
        return causal_rule(network, letters, target, sites, hidden=hidden)

    def state_dict(self) -> dict[str, Tensor]:
        return {"generator": self._generator.get_state()} if self.dropout else {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if self.dropout:
            self._generator.set_state(state["generator"])
