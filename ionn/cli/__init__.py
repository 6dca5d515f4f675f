"""The command line. Results go to standard output, progress and logs to standard error.

Exit codes: 0 done; 1 failed; 2 the input cannot be used, a library is missing or there is no server (one line says what
is wrong and what to do); 130 interrupted.
"""

from __future__ import annotations

import sys

import click

from ionn.cli.classifying import classify
from ionn.cli.experiments import figures, run
from ionn.cli.judging import claims
from ionn.cli.measuring import calibrate, profile
from ionn.cli.models import models
from ionn.cli.planning import plan
from ionn.cli.serving import bandwidth, keygen, link, ping, serve
from ionn.cli.sweeping import sweep
from ionn.cli.walking import walk
from ionn.errors import InputError, IonnError, MissingLibraryError, ServerUnreachableError
from ionn.libraries import missing_library


def main() -> None:
    """Run the command line. Errors of ionn become one line and an exit code. Raises KeyboardInterrupt for Ctrl-C."""
    try:
        cli.main(standalone_mode=False)
    except click.Abort:
        raise KeyboardInterrupt from None
    except click.exceptions.NoArgsIsHelpError as error:
        sys.stderr.write(f"{error.format_message()}\n")
        sys.exit(2)
    except click.ClickException as error:
        sys.stderr.write(f"ionn: {' '.join(error.format_message().split())}\n")
        sys.exit(2)
    except (InputError, MissingLibraryError, ServerUnreachableError) as error:
        sys.stderr.write(f"ionn: {error}\n")
        sys.exit(2)
    except IonnError as error:
        sys.stderr.write(f"ionn: {error}\n")
        sys.exit(1)
    except ImportError as error:
        if (error.name or "ionn").partition(".")[0] == "ionn":  # a bug, not a missing library
            raise
        sys.stderr.write(f"ionn: {missing_library(error)}\n")
        sys.exit(2)
    except BrokenPipeError:  # the reader of the output, such as head, has ended
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        sys.stderr.write(f"ionn: {error.filename or 'output'}: {error.strerror}\n")
        sys.exit(2)


EXIT_CODES = """\b
Exit codes:
  0    done
  1    failed: a result was wrong, weights are damaged, or a process died
  2    the input cannot be used, a library is missing, or a server is not there,
       refuses or was lost; one line says what is wrong and what to do
  130  interrupted
"""


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_CODES)
@click.version_option(package_name="ionn")
def cli() -> None:
    """Incremental offloading of neural networks: plan which layers of a Caffe model to upload to an edge server first,
    upload them while queries run, and measure how much faster queries get.

    MODEL is alexnet, inception, resnet, googlenet, mobilenet, or the path of a .prototxt.
    """


for command in (
    plan, run, walk, sweep, figures, claims, classify, models, profile, calibrate, serve, link, bandwidth, ping, keygen,
):  # fmt: skip
    cli.add_command(command)
