"""`domainbuilder xl` and its verbs: domains in the background."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from domainbuilder.commands._run_options import Date, NoCache, SaveForm, SnapshotDisks
from domainbuilder.commands.create import Config, DryRun, Quiet, Settings, read_told
from domainbuilder.errors import BuildError

if TYPE_CHECKING:
    from domainbuilder.background.runtime import Domain


_ROW = "%-40s %5d %5d %5d     %s  %8.1f\n"  # as xl prints it

Named = Annotated[
    str, typer.Argument(metavar="DOMAIN", help="A domain's name or number.", show_default=False)
]
Some = Annotated[
    str | None, typer.Argument(metavar="[DOMAIN]", help="This domain alone.", show_default=False)
]
Attach = Annotated[bool, typer.Option("--console", "-c", help="Be its console.")]
Paused = Annotated[bool, typer.Option("--pause", "-p", help="Leave it paused before its first instruction.")]
Node = Annotated[str, typer.Argument(metavar="PATH", help="The node.", show_default=False)]
Wait = Annotated[bool, typer.Option("--wait", "-w", help="Wait until the domain is gone.")]
SaveFile = Annotated[Path, typer.Argument(metavar="FILE", help="Where to.", show_default=False)]
Continue = Annotated[bool, typer.Option("--continue", "-c", help="The domain goes on.")]
StayPaused = Annotated[bool, typer.Option("--pause", "-p", help="The domain stays, and is paused.")]
As = Annotated[
    SaveForm, typer.Option("--as", help="As it stands; or as xl writes it, for which the guest suspends.")
]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]
Long = Annotated[bool, typer.Option("--long", "-l", help="Their configurations, as JSON.")]
Foreground = Annotated[bool, typer.Option("-F", help="In the foreground, as `domainbuilder create`.")]
ConsoleFile = Annotated[
    Path | None,
    typer.Option("--console-log", metavar="FILE", help="Write what the guest prints to FILE, too."),
]


def find_named(name: str) -> Domain:
    """The domain of that number or name. Raises BuildError where there is none."""
    from domainbuilder.background.runtime import find

    return find(name)


def xl() -> None:
    """Run domains in the background: xl's verbs, which `domainbuilder --help` lists.

    A domain is a process of the user's, found under $XDG_RUNTIME_DIR. It ends with the guest, with
    `xl destroy`, or with the process, and leaves nothing behind that would have to be cleaned up.

    \b
    Examples:
      domainbuilder xl create guest.cfg
      domainbuilder xl list
      domainbuilder xl console guest
      domainbuilder xl shutdown guest
    """
    from domainbuilder.command_names import COMMANDS

    for name, command in COMMANDS.items():
        if name.startswith("xl "):
            typer.echo(f"  {name:18}{command.help}")


def create(
    config: Config,
    settings: Settings = None,
    dryrun: DryRun = False,
    quiet: Quiet = False,
    console: Attach = False,
    paused: Paused = False,
    foreground: Foreground = False,
    snapshot: SnapshotDisks = False,
    date: Date = None,
    no_cache: NoCache = False,
    console_log: ConsoleFile = None,
) -> None:
    """Run a domain in the background, as an xl.cfg(5) describes it.

    The configuration is that of `domainbuilder create`, which runs it in the foreground. What happens to the
    domain is written to ~/.local/state/domainbuilder/xl-NAME.log.

    \b
    Examples:
      domainbuilder xl create guest.cfg
      domainbuilder xl create -c guest.cfg 'memory=512'
    """
    from domainbuilder.background.client import start, tell_started

    wanted = read_told(config, settings, quiet=quiet, dryrun=dryrun)
    if wanted is None:
        return
    if foreground:
        from domainbuilder.launch.create import create as run
        from domainbuilder.launch.launch_options import LaunchOptions

        options = LaunchOptions(file="", date=date, cache=not no_cache, console_log=console_log)
        raise typer.Exit(run(wanted.with_snapshots() if snapshot else wanted, options, quiet=quiet))
    domain = start(
        wanted, snapshot=snapshot, paused=paused, date=date, cache=not no_cache, console_log=console_log
    )
    tell_started(domain, console=console, quiet=quiet)


def list_domains(domain: Some = None, long: Long = False, as_json: AsJson = False) -> None:
    """List the domains in the background: number, memory in MB, vCPUs, state, processor time.

    States are xl's: r running, b blocked, p paused, s shut down, c crashed. The time is the guest's own.
    """
    from domainbuilder.background.client import infos

    told = infos(find_named(domain) if domain is not None else None)
    if long:
        import json

        known = [one for one in told if one["state"] is not None]
        configs = [{"domid": one["id"], "config": ask_named(str(one["id"]), "config")} for one in known]
        print(json.dumps(configs, indent=2))
        return
    if as_json:
        import json

        print(json.dumps(told, indent=2))
        return
    sys.stdout.write(f"{'Name':40} {'ID':>5} {'Mem':>5} VCPUs\tState\tTime(s)\n")
    for one in told:
        state = "".join(letter if letter == one["state"] else "-" for letter in "rbpscd")
        numbers = [one[key] or 0 for key in ("memory_mib", "vcpus", "cpu_seconds")]
        row = (one["name"], one["id"], *numbers[:2], state, numbers[2])
        sys.stdout.write(_ROW % row)


def vm_list() -> None:
    """List the domains in the background with their UUIDs."""
    from domainbuilder.background.client import infos

    print("UUID                                  ID    name")
    for one in infos():
        print(f"{one['uuid'] or '-':36}  {one['id']:<5} {one['name']}")


def console(domain: Named) -> None:
    """Be the console of a domain in the background; Ctrl-] leaves it.

    What the guest printed while nobody looked comes first. Input from a pipe is typed, and its end leaves.
    """
    from domainbuilder.background.client import be_console

    be_console(find_named(domain))


def domid(domain: Named) -> None:
    """Print the number of a domain in the background."""
    print(find_named(domain).id)


def domname(domain: Named) -> None:
    """Print the name of a domain in the background."""
    print(find_named(domain).name)


def rename(
    domain: Named,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its new name.", show_default=False)],
) -> None:
    """Give a domain in the background another name.

    It may be no other domain's.
    """
    ask_named(domain, "rename", to=name)


def uptime(domain: Some = None) -> None:
    """Print for how long domains have been in the background."""
    from domainbuilder.background.client import infos

    print(f"{'Name':<33} {'ID':>4} Uptime")
    for one in infos(find_named(domain) if domain is not None else None):
        days, rest = divmod(one["uptime_seconds"] or 0, 86400)
        shown = f"{days} days, " if days > 1 else "1 day, " if days else ""
        print(
            f"{one['name']:<33} {one['id']:>4} {shown}{rest // 3600:>2}:{rest // 60 % 60:02}:{rest % 60:02}"
        )


def ask_named(name: str, verb: str, **arguments: Any) -> Any:
    """What the domain of that name answers. Raises BuildError."""
    from domainbuilder.background.client import ask

    return ask(find_named(name), verb, **arguments)


def _request(name: str, reason: str, *, wait: bool) -> None:
    from domainbuilder.background.client import ask, until_gone

    domain = find_named(name)
    ask(domain, "shutdown", reason=reason)
    if wait:
        until_gone(domain)


def pause(domain: Named) -> None:
    """Have a domain in the background stand still; its clock does, too."""
    ask_named(domain, "pause")


def unpause(domain: Named) -> None:
    """Have a paused domain go on."""
    ask_named(domain, "unpause")


def shutdown(domain: Named, wait: Wait = False) -> None:
    """Ask a domain in the background to power off; it may take its time."""
    _request(domain, "poweroff", wait=wait)


def reboot(domain: Named, wait: Wait = False) -> None:
    """Ask a domain in the background to reboot; it may take its time.

    It goes on as on_reboot of its configuration says: it is restarted, and --wait waits for a later end.
    """
    _request(domain, "reboot", wait=wait)


def destroy(domain: Named) -> None:
    """End a domain in the background at once.

    Its process is killed if it does not answer within ten seconds.
    """
    from domainbuilder.background.client import destroy as end

    end(find_named(domain))


def save(
    domain: Named,
    file: SaveFile,
    go_on: Continue = False,
    leave_paused: StayPaused = False,
    form: As = SaveForm.frozen,
) -> None:
    """Save a domain in the background to a file, and end it.

    `domainbuilder restore FILE` goes on with it, in the foreground. Without --as xen the guest does not
    notice.

    \b
    Examples:
      domainbuilder xl save guest guest.domain
      domainbuilder xl save --continue guest guest.domain
    """
    from domainbuilder.background.client import ask, until_gone

    if go_on and leave_paused:
        raise typer.BadParameter("--continue and --pause are two things to do")
    found, after = find_named(domain), "continue" if go_on else "pause" if leave_paused else "destroy"
    size = ask(found, "save", None, path=str(file.absolute()), form=form.value, after=after)
    print(f"domainbuilder: {file}, {size:,} bytes", file=sys.stderr)
    if after == "destroy":
        until_gone(found)


def restore(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="[CFG] FILE",
            help="Its configuration, and the saved domain: a file, or unix:PATH to await one that is moved.",
            show_default=False,
        ),
    ],
    console: Attach = False,
    paused: Paused = False,
    console_log: ConsoleFile = None,
) -> None:
    """Go on in the background with a domain that was saved, here or by Xen's xl.

    A configuration says which files its disks are, which have to be what they were, which of its interfaces
    lead out of the host again, and what follows its end; without one it is gone then.

    \b
    Examples:
      domainbuilder xl restore guest.domain
      domainbuilder xl restore guest.cfg guest.domain
      domainbuilder xl restore unix:/tmp/moved
    """
    from domainbuilder.background.client import start, tell_started
    from domainbuilder.inputs import names_socket
    from domainbuilder.kept_files import find_named as find_kept
    from domainbuilder.launch.create import load_config

    if len(files) > 2:
        raise typer.BadParameter("a configuration and a file, or a file alone")
    config = load_config(files[0], []).config if len(files) == 2 else None
    saved = files[-1] if names_socket(files[-1]) else str(Path(find_kept(files[-1])).absolute())
    tell_started(start(config, saved=saved, paused=paused, console_log=console_log), console=console)


def migrate(
    domain: Named,
    address: Annotated[
        str, typer.Argument(metavar="unix:PATH", help="Where it is awaited.", show_default=False)
    ],
) -> None:
    """Move a domain in the background, while it runs, to who awaits it.

    That is `domainbuilder xl restore unix:PATH`, or `domainbuilder restore unix:PATH` in the foreground.
    """
    from domainbuilder.background.client import ask, until_gone

    found = find_named(domain)
    print(f"domainbuilder: {ask(found, 'migrate', None, address=address)}", file=sys.stderr)
    until_gone(found)


def dump_core(
    domain: Named,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to.", show_default=False)],
) -> None:
    """Dump the memory of a domain in the background, for `domainbuilder inspect`; it goes on."""
    size = ask_named(domain, "dump-core", patience=None, path=str(file.absolute()))
    print(f"domainbuilder: {file}, {size:,} bytes", file=sys.stderr)


def vncviewer(domain: Named) -> None:
    """Print where the framebuffer of a domain in the background is seen by VNC.

    \b
    Examples:
      vncviewer $(domainbuilder xl vncviewer guest)
    """
    address = ask_named(domain, "vnc")
    if not address:
        raise BuildError(f"{domain} is not seen by VNC: its configuration has no vfb, or vnc=0")
    print(address)


def screenshot(
    domain: Named,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to.", show_default=False)],
) -> None:
    """Write what the framebuffer of a domain in the background shows, as PNG.

    The domain goes on, and does not notice. A framebuffer (`vfb`) that its guest has closed shows what it
    showed last.

    \b
    Examples:
      domainbuilder xl screenshot guest guest.png
    """
    size = ask_named(domain, "screenshot", path=str(file.absolute()))
    print(f"domainbuilder: {file}, {size:,} bytes", file=sys.stderr)


def sysrq(
    domain: Named,
    letter: Annotated[str, typer.Argument(metavar="LETTER", help="Which, as in h.", show_default=False)],
) -> None:
    """Send a magic SysRq letter to a Linux in the background."""
    ask_named(domain, "sysrq", letter=letter)


def xenstore_ls(
    domain: Named,
    path: Annotated[str, typer.Argument(metavar="[PATH]", help="Where to begin.")] = "/",
) -> None:
    """List the store of a domain's host, as xenstore-ls does. There the domain's number is 1."""
    nodes = ask_named(domain, "xenstore-ls", path=path)
    assert isinstance(nodes, list)
    for depth, name, value in nodes:
        shown = value.encode("unicode_escape").decode("ascii").replace('"', '\\"')
        print(f'{" " * depth}{name} = "{shown}"')


def xenstore_read(domain: Named, path: Node) -> None:
    """Print a node of the store of a domain's host. There the domain's number is 1."""
    print(ask_named(domain, "xenstore-read", path=path))


def xenstore_write(
    domain: Named,
    path: Node,
    value: Annotated[str, typer.Argument(metavar="VALUE", help="What to write.", show_default=False)],
) -> None:
    """Write a node of the store of a domain's host, as domain 0; its watches are told."""
    ask_named(domain, "xenstore-write", path=path, value=value)


def xenstore_rm(domain: Named, path: Node) -> None:
    """Remove a node of the store of a domain's host, and what is below it, as domain 0."""
    ask_named(domain, "xenstore-rm", path=path)
