"""Stores on this machine: fsspec's own memory, and emulators of two others."""

import contextlib
import importlib.util
import logging

import fsspec
import fsspec.config
import pytest

from mpt_jax.checkpoints import stores

# Scheme -> what must be installed to have it here.
NEEDS = {'memory': (), 'gs': ('gcsfs', 'gcp_storage_emulator')}
NEEDS['s3'] = ('s3fs', 'moto', 'flask')


def _start_gs(patch):
  from gcp_storage_emulator import server

  found = server.create_server('127.0.0.1', 0, in_memory=True)
  found.start()
  port = found._api._httpd.server_address[1]
  patch.setenv('STORAGE_EMULATOR_HOST', f'http://127.0.0.1:{port}')
  # For other processes, and for this one, which has read its environment.
  patch.setenv('FSSPEC_GCS_TOKEN', 'anon')
  patch.setitem(fsspec.config.conf, 'gcs', {'token': 'anon'})
  # Else its client asks, for a minute, of which kind the bucket is.
  patch.setenv('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')
  return found


def _start_s3(patch):
  from moto.server import ThreadedMotoServer

  found = ThreadedMotoServer('127.0.0.1', 0, verbose=False)
  found.start()
  _, port = found.get_host_and_port()
  patch.setenv('AWS_ENDPOINT_URL', f'http://127.0.0.1:{port}')
  patch.setenv('AWS_DEFAULT_REGION', 'us-east-1')
  for name in ('AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY'):
    patch.setenv(name, 'none')
  return found


@pytest.fixture(scope='module')
def store(request):
  """A scheme whose bucket `bucket` is there; the parameter says which."""
  scheme = request.param
  for package in NEEDS[scheme]:
    if importlib.util.find_spec(package) is None:
      pytest.skip(f'{scheme}:// needs {package}')
  with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stop:
    if scheme == 'memory':
      patch.setitem(stores.STORES, 'memory', ('fsspec', 'none'))
    else:
      # What they log would go, by a run's log, to themselves.
      for name in ('gcp_storage_emulator', 'werkzeug'):
        logging.getLogger(name).setLevel(logging.WARNING)
      stop.callback({'gs': _start_gs, 's3': _start_s3}[scheme](patch).stop)
    # Two of them remember what another module had.
    with contextlib.suppress(FileExistsError):
      fsspec.filesystem(scheme).mkdir('bucket')
    yield scheme
    fsspec.filesystem(scheme).clear_instance_cache()
