"""Where a training is in its data, and the way back there"""

# A run that resumes within an epoch trains on the batches that are left, and on no others. A loader that can save
# itself, like torchdata's `StatefulDataLoader`, returns to its position. From another, the batches that were trained
# are drawn again, with the random states with which the pass over the data began, and dropped.

from collections.abc import Iterable
from typing import Any
from warnings import warn

from ..fastai_internals import has_persistent_workers, loaders_of, n_workers
from ..stream import StreamCallback, has_length
from .objects import Refused, Standing, dump, has_state_dict, load
from .state import random_states, set_global_random_states, set_random_states

def loader_state(loader): # Bytes; `None` if it says nothing that can be stored
    "Return what `loader` says about its position."
    if not has_state_dict(loader): return None
    try: return dump(loader.state_dict(), Standing())
    except Exception: return None     # whatever the objects of others raise

def _read(told):
    "Return what a loader said; raises `Refused` if it is something else."
    state, reader = load(told, Standing())
    if reader.unknown: raise Refused(', '.join(reader.unknown))
    reader.fill()
    return state

class EpochPosition:
    """The position of a training in its data, where each epoch is a pass over them.

    `n_done` is the number of batches trained in this epoch, `n_trained` in all."""
    def __init__(self, learn, loaders):
        self.learn, self.loaders = learn, loaders
        self.began:Any = None     # random states, where the current pass began
        self.told:Any = None      # what the data loader said about its position in the saved state

    def note_pass(self):
        "Note the random states with which a pass over the training data begins."
        self.began = random_states(self.loaders)

    def enter_epoch(self, n_done:int):
        "Prepare for the batches of an epoch."
        if n_done == 0: self.note_pass()

    def is_in_pass(self, n_done:int, n_trained:int) -> bool:
        "Return whether a pass over the training data is under way."
        return n_done > 0

    def state(self, n_done:int) -> dict: # `n_taken` is the number of batches to draw again from a stream
        "Return what leads back to this position."
        is_in, loader = self.is_in_pass(n_done, self.learn.train_iter), self.learn.dls.train
        return dict(n_taken=0, began=self.began if is_in else None, told=loader_state(loader) if is_in else None)

    def go_to(self, state:dict, n_done:int, n_trained:int):
        "Note where to go; raises `Refused` if `state` doesn't say it."
        if state['began'] is None and self.is_in_pass(n_done, n_trained): raise Refused('no beginning of the epoch')
        self.began, self.told = state['began'], None if state['told'] is None else _read(state['told'])

    def _is_told(self, loader): return self.told is not None and has_state_dict(loader)

    def batches_left(self,
        n_done:int, # Number of batches trained in this epoch
        now:dict # All random states, as they were after these
    ) -> Iterable: # Batches
        "Return the batches of a resumed epoch after the first `n_done`, with all random states as they were there."
        loader = self.learn.dl
        if self._is_told(loader): return self._told_batches(loader, now)
        set_random_states(self.loaders, self.began)
        batches = iter(loader)
        for _ in zip(range(n_done), batches): pass     # a file may claim more than there are
        set_random_states(self.loaders, now)
        return batches

    def _told_batches(self, loader, now):
        "Return the batches of a loader from the position that it told."
        set_random_states(self.loaders, now)
        generator = getattr(loader, 'generator', None)     # the iterator draws a seed from it
        drawn = generator and generator.get_state()
        loader.load_state_dict(self.told)
        batches = iter(loader)
        if generator: generator.set_state(drawn)
        set_global_random_states(now)
        return batches

    def note(self, state:dict, checkpoint) -> str: # Nothing if there is nothing to say
        "Return a sentence about the way to the position."
        return ''

    def warn_of_workers(self, state:dict|None, name:str):
        "Warn of random states inside the workers of a data loader, which can't be saved, or are lost on the way."
        if any(map(has_persistent_workers, loaders_of(self.learn.dls))):
            warn('A checkpoint cannot restore the random states inside the workers of a DataLoader with '
                 'persistent_workers=True: their random draws differ after a crash')
        if state and state['told'] is not None and n_workers(self.learn.dls.train):
            warn(f'Checkpoint {name!r} does not restore random states inside the workers of a data loader that tells '
                 'its own position: random draws there, such as those of an augmentation, will differ in this epoch')

class StreamPosition(EpochPosition):
    "The position of a training in a stream, whose passes over the data go on from epoch to epoch."
    def __init__(self, learn, loaders, stream:StreamCallback, replay:bool=True):
        super().__init__(learn, loaders)
        self.stream, self.replay = stream, replay
        stream.on_pass = self.note_pass

    def is_in_pass(self, n_done, n_trained): return n_done > 0 or n_trained > 0

    def _n_to_draw(self, place):
        "Return how many batches of the pass have to be drawn again: none if it has ended."
        loader, n_taken = self.learn.dls.train, (place or {}).get('n_taken', 0)
        return 0 if has_length(loader) and n_taken >= len(loader) else n_taken

    def state(self, n_done): return super().state(n_done) | dict(n_taken=self._n_to_draw(self.stream.state_dict()))

    def enter_epoch(self, n_done):
        "Bring the training data to where they were, if this fit resumes."
        place, self.stream.place = self.stream.place, None
        if place is not None and (self.replay or self._is_told(self.learn.dls.train)): self._go_to(place)

    def batches_left(self, n_done, now):
        "Return the batches of a resumed epoch after the first `n_done`; the stream is at its position."
        self.learn.dl.n_done = n_done
        return self.learn.dl

    def note(self, state, checkpoint):
        "Return a sentence about the way to the position."
        n_taken = state['n_taken']
        if not n_taken or state['told'] is not None: return ''
        if not self.replay: return 'The batches of dls.train are taken as they come.'
        return (f'dls.train is fast-forwarded past the {n_taken} batches already trained on; if it cannot be '
                f'replayed, {checkpoint.with_option("replay=False")} takes its batches as they come.')

    def _go_to(self, place):
        "Bring the stream to `place`: at once if its loader told its position, and else by running it forward."
        stream, loader, is_told = self.learn.dl, self.learn.dls.train, self._is_told(self.learn.dls.train)
        if not is_told and not self._n_to_draw(place):
            stream.n_pass, stream.n_taken = place['n_pass'], place['n_taken']
            return
        now = random_states(self.loaders)
        set_random_states(self.loaders, self.began)
        if is_told: loader.load_state_dict(self.told)
        stream.go_to(place, run_forward=not is_told)
        set_random_states(self.loaders, now)

def data_position(learn, loaders, replay:bool=True) -> EpochPosition:
    "Return the position of a fit of `learn` in its data."
    for cb in learn.cbs:
        if isinstance(cb, StreamCallback) and cb.n_batch is not None: return StreamPosition(learn, loaders, cb, replay)
    return EpochPosition(learn, loaders)
