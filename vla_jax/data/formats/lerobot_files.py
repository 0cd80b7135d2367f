"""The numbered files of a LeRobot v3.0 dataset."""

from pathlib import Path

from vla_jax.data.formats.lerobot_extra import pa, pq

FILES_PER_CHUNK = 1000
FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"


def numbered(number: int) -> str:
    chunk, file = divmod(number, FILES_PER_CHUNK)
    return FILE.format(chunk_index=chunk, file_index=file)


class TableFiles:
    """Numbered parquet files, one row group per table written. After `close` comes the next file."""

    def __init__(self, folder: Path, first_file: int):
        self._folder, self._number = folder, first_file - 1
        self._writer: pq.ParquetWriter | None = None
        self.num_bytes = 0  # of the open file, before it is compressed

    def write(self, table: pa.Table) -> tuple[int, int]:
        """Append; the numbers of the chunk and the file that the table is in."""
        if self._writer is None:
            self._number += 1
            path = self._folder / (numbered(self._number) + ".parquet")
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(path, table.schema)
        self._writer.write_table(table)
        self.num_bytes += table.nbytes
        return divmod(self._number, FILES_PER_CHUNK)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self.num_bytes = 0
