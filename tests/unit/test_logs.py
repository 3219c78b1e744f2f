"""What is silenced is said by the libraries as it is written here; other warnings stay."""

import inspect
import warnings

from joblib.externals.loky import process_executor

from foura.logs import quiet

REPLACED = "A worker stopped while some jobs were given to the "


def test_a_replaced_worker_of_a_sweep_is_no_news() -> None:
    assert f'"{REPLACED}"' in inspect.getsource(process_executor)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        quiet()
        warnings.warn(f"{REPLACED}executor.", UserWarning, stacklevel=1)
        warnings.warn("A worker stopped.", UserWarning, stacklevel=1)
    assert [str(one.message) for one in heard] == ["A worker stopped."]
