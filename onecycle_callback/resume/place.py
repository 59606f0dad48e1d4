"""Where a training is in its data, and the way back there"""

from collections.abc import Iterable
from copy import deepcopy
from typing import Any


from ..fastai_internals import n_workers
from .graph import Graph, Names, has_state_dict
from .state import random_states, set_global_random_states, set_random_states
from ..stream import StreamCallback

def told_place(
    loader # A data loader, or anything that can be iterated over
): # What its `load_state_dict` takes; `None` if it says nothing that can be stored
    "Return what `loader` says about its place."
    place = loader.state_dict() if has_state_dict(loader) else None
    try: Graph().digester(Names({}))(place)
    except Exception: return None     # whatever the objects of others raise
    return deepcopy(place)

class EpochPlace:
    "The place of a training in its data, where each epoch is a pass over them."
    def __init__(self,
        learn, # The `Learner`
        loaders # The `ObjectStates` of its data loaders
    ):
        self.learn, self.loaders = learn, loaders
        self.began:Any = None     # random states, where the current pass began
        self.told:Any = None     # what the data loader said about its place in the saved state

    def note_pass(self):
        "Note the random states with which a pass over the training data begins."
        self.began = random_states(self.loaders)

    def enter_epoch(self,
        n_done:int # How many of its batches are trained
    ):
        "Prepare for the batches of an epoch."
        if n_done == 0: self.note_pass()

    def is_in_pass(self,
        n_done:int # Number of batches trained in this epoch
    ) -> bool:
        "Return whether a pass over the training data is under way."
        return n_done > 0

    def state(self,
        n_done:int # Number of batches trained in this epoch
    ) -> dict: # `n_taken` is the number of batches that the pass gave, which only a stream counts
        "Return what leads back to this place."
        loader = self.learn.dls.train
        in_pass = dict(random_epoch=self.began, place=told_place(loader)) if self.is_in_pass(n_done) else {}
        return dict(n_taken=None, random_epoch=None, place=None) | in_pass

    def restore(self,
        state:dict # What `state` returned
    ):
        "Note where to go."
        self.began, self.told = state['random_epoch'], state.get('place')

    def batches_left(self,
        n_done:int, # Number of batches trained in this epoch
        now:dict # All random states, as they were after these
    ) -> Iterable: # Batches
        "Return the batches of a resumed epoch after the first `n_done`, with all random states as they were there."
        loader = self.learn.dl
        if self.told is not None and has_state_dict(loader): return self._from_told_place(loader, now)
        set_random_states(self.loaders, self.began)
        batches = iter(loader)
        for _ in range(n_done): next(batches, None)
        set_random_states(self.loaders, now)
        return batches

    def _from_told_place(self, loader, now):
        "Return the batches of a loader from the place on that it told."
        set_random_states(self.loaders, now)
        generator = getattr(loader, 'generator', None)     # the iterator draws a seed from it
        drawn = generator and generator.get_state()
        loader.load_state_dict(self.told)
        batches = iter(loader)
        if generator: generator.set_state(drawn)
        set_global_random_states(now)
        return batches

    def loses_workers(self,
        state:dict # What `state` returned
    ) -> bool:
        "Return whether random states inside the workers of the data loader are lost on the way: it tells its place."
        return state.get('place') is not None and n_workers(self.learn.dls.train) > 0

    def way(self,
        state:dict, # What `state` returned
        name:str # The name of the checkpoint
    ) -> str: # Nothing if there is nothing to say
        "Return a sentence about the way to the place."
        return ''

class StreamPlace(EpochPlace):
    "The place of a training in a stream, whose passes over the data go on from epoch to epoch."
    def __init__(self,
        learn, # The `Learner`
        loaders, # The `ObjectStates` of its data loaders
        stream:StreamCallback, # The callback that makes its epochs
        replay:bool=True # Whether to run the stream forward to its place
    ):
        super().__init__(learn, loaders)
        self.stream, self.replay = stream, replay
        stream.on_pass = self.note_pass

    def is_in_pass(self,
        n_done:int # Number of batches trained in this epoch
    ) -> bool:
        "Return whether a pass over the training data is under way."
        return n_done > 0 or self.learn.train_iter > 0

    def state(self,
        n_done:int # Number of batches trained in this epoch
    ) -> dict: # As that of an `EpochPlace`
        "Return what leads back to this place."
        return super().state(n_done) | dict(n_taken=self.stream.state_dict().get('n_taken'))

    def enter_epoch(self,
        n_done:int # How many of its batches are trained
    ):
        "Bring the training data to where they were, if this fit resumes."
        place, self.stream.place = self.stream.place, None
        is_told = self.told is not None and has_state_dict(self.learn.dls.train)
        if place is not None and (self.replay or is_told): self._go_to(place, is_told)

    def batches_left(self,
        n_done:int, # Number of batches trained in this epoch
        now:dict # All random states, as they were after these
    ) -> Iterable: # Batches
        "Return the batches of a resumed epoch after the first `n_done`; the stream is at its place."
        self.learn.dl.n_done = n_done
        return self.learn.dl

    def way(self,
        state:dict, # What `state` returned
        name:str # The name of the checkpoint
    ) -> str: # Nothing if there is nothing to say
        "Return a sentence about the way to the place."
        n_taken = state.get('n_taken')
        if not n_taken or state.get('place') is not None: return ''
        if not self.replay: return 'The batches of dls.train are taken as they come.'
        return (f'dls.train is run forward over the {n_taken} batches that are trained; if it cannot be '
                f'repeated, CycleCheckpoint({name!r}, replay=False) takes its batches as they come.')

    def _go_to(self, place, is_told):
        "Bring the stream to `place`: at once if its loader told its place, and else by running it forward."
        now = random_states(self.loaders)
        set_random_states(self.loaders, self.began)
        if is_told: self.learn.dls.train.load_state_dict(self.told)
        self.learn.dl.go_to(place, run_forward=not is_told)
        set_random_states(self.loaders, now)

def data_place(
    learn, # The `Learner`
    loaders, # The `ObjectStates` of its data loaders
    replay:bool=True # Whether to run a stream forward to its place
) -> EpochPlace:
    "Return the place of a fit of `learn` in its data."
    for cb in learn.cbs:
        if isinstance(cb, StreamCallback) and cb.n_batch is not None: return StreamPlace(learn, loaders, cb, replay)
    return EpochPlace(learn, loaders)
