"""`python -m onecycle_callback` is the same as `onecycle-demo`."""
from onecycle_callback.demo import main

if __name__ == '__main__': main()
