"""The kinds of files: their usual names, the way to read them or the reason for refusing them, and their marks.

To add a kind, add a FileKind, and a line in SIGNATURES if its first bytes identify it, otherwise in SUFFIXES. `file_recognition`
uses these tables.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from gpt_pretrain.system.formatting import format_count
from gpt_pretrain.system.recognition.conversion import quote_path
from gpt_pretrain.system.recognition.encodings import TextEncoding

HEAD = 1 << 16  # Bytes from the start of a file to examine.
# The forms of a readable file. They decide how its content becomes documents, or which files it contains.
TEXT, LINES, ARRAY, OBJECTS, ROWS, PARQUET = "text", "JSON lines", "JSON array", "JSON objects", "rows", "Parquet"
COMPRESSED, ARCHIVES = ("gz", "bz2", "xz", "zst"), ("tar", "zip")
EMPTY, REFUSED = "empty", "refused"

UTF8 = TextEncoding("utf-8")


@dataclass(frozen=True)
class FileKind:
    """A kind of file.

    Args:
        name: Its usual name, in the singular and without an article.
        form: The form in which it is read; REFUSED if it is not read.
        advice: For a refused kind, the way to get its text, or its purpose; {path} stands for the file.
        encoding: The encoding of a text.
        warning: The problem of a file that is read nevertheless, as the rest of a sentence that begins with its name; {path}
            stands for the file in a command.
        content: The form of the content of a compressed file on disk.
    """

    name: str
    form: str = REFUSED
    advice: str = ""
    encoding: TextEncoding = UTF8
    warning: str = ""
    content: str = ""

    @property
    def is_read(self) -> bool:
        """Return whether files of this kind are read as text."""
        return self.form not in (EMPTY, REFUSED)

    def described(self) -> str:
        """Return the name with its article."""
        return f"{'an' if _SPOKEN_WITH_AN.match(self.name) else 'a'} {self.name}"

    def counted(self, number: int) -> str:
        """Return a number of files of this kind, such as "2 tables in CSV"."""
        noun, *rest = re.split(r"(?= (?:of|in|without) )", self.name, maxsplit=1)
        return format_count(number, noun) + "".join(rest)

    def refusal(self, path: str) -> str:
        """Return the message for a refused file: its kind and the advice."""
        advice = self.advice.replace("{path}", quote_path(path)) or "Only text is read."
        is_text = self.name.startswith("text ")
        return f"{path} is {self.described()}{', not text' * (not is_text)}. {advice}"


_SPOKEN_WITH_AN = re.compile(r"[AEIOaeio]|(HTML|XML|MP3|MP4|RTF|LZ4|LZMA|HDF5|MDS|SVG|NPZ|SPSS)")


def convert_advice(command: str, what: str = "Extract its text first") -> str:
    return f"{what}, for example with: {command}"


_SHARDS = "Token ids are trained on with data=shards data.path=FOLDER."
_WEIGHTS = "Weights are given with init_from={path} for training, or pretrained={path} for generate.py."
NO_WEIGHTS = "Such weights cannot be read here. Look for the model's model.safetensors."
_PANDOC = convert_advice("pandoc -t plain {path} -o text.txt")
AS_TEXT_ADVICE = " (To train on its source as it is, add as_text=true, or data.as_text=true for train.py.)"
_OFFICE = convert_advice("libreoffice --headless --convert-to {target} {path}", "Convert it first")
MEDIA_ADVICE = "It contains no text. For speech, transcribe it first."

PLAIN = FileKind("text file", TEXT)
JSON_LINES = FileKind("file of JSON lines", LINES)
JSON_ARRAY = FileKind("JSON array", ARRAY)
JSON_OBJECTS = FileKind("JSON file", OBJECTS)
CSV = FileKind("table in CSV", ROWS)
EMPTY_FILE = FileKind("empty file", EMPTY)
BINARY = FileKind("binary file of an unknown kind", advice="Only text is read. If it contains text, extract that first.")
PART_OF_ZIP = FileKind(
    "part of a zip archive",
    advice="Join all parts, by the name of the one in .zip: zip -s 0 NAME.zip --out whole.zip. If there are no others, it is "
    "damaged: get it again.",
)
ZIP_BEHIND_TEXT = FileKind(
    "zip archive behind a script", advice=convert_advice("unzip {path} -d texts", "Extract its files first")
)
PARTLY_UTF_16 = FileKind(
    "text in two encodings",
    advice="Part of it is UTF-16, as Windows PowerShell appends it with >>. Save each part in UTF-8, for example with: "
    "Add-Content -Encoding utf8",
)
NULS = FileKind("file of NULs", advice="It was never filled. If text follows them: tr -d '\\000' < {path} > new.txt")
TOKENS = FileKind("file of token ids without a header", advice=_SHARDS)
HTML = FileKind("HTML page", advice=_PANDOC.replace("plain", "plain -f html") + AS_TEXT_ADVICE)
NOTEBOOK = FileKind(
    "Jupyter notebook", advice=convert_advice("jupyter nbconvert --to markdown {path}", "Convert it first") + AS_TEXT_ADVICE
)
MHTML = FileKind("web archive in MHTML", advice="Save the page as HTML or as text first." + AS_TEXT_ADVICE)
MAILBOX = FileKind(
    "text file",
    TEXT,
    warning="is read as plain text, but contains e-mails: their headers and encoded attachments are part of the text",
)
XML = FileKind("XML document", advice=_PANDOC + AS_TEXT_ADVICE)
WIKI = FileKind(
    "wiki dump",
    advice=convert_advice("python -m wikiextractor.WikiExtractor --json {path}", "Extract its articles first") + AS_TEXT_ADVICE,
)
PICTURE_ADVICE = convert_advice("tesseract {path} text", "Recognize its text first")
MP4, MP4_SOUND = FileKind("MP4 video", advice=MEDIA_ADVICE), FileKind("MP4 recording", advice=MEDIA_ADVICE)
RECORDING, VIDEO = FileKind("recording", advice=MEDIA_ADVICE), FileKind("video", advice=MEDIA_ADVICE)
ZIP = FileKind("zip archive", "zip")
TAR = FileKind("tar archive", "tar")
WORD, SHEET, SLIDES = (
    FileKind(name, advice=_OFFICE.replace("{target}", target))
    for name, target in (("word processor document", "txt:Text"), ("spreadsheet", "csv"), ("slide presentation", "pdf"))
)
PDF = FileKind("PDF document", advice=convert_advice("pdftotext {path} text.txt"))
POSTSCRIPT = FileKind("PostScript document", advice=convert_advice("ps2ascii {path} text.txt"))
RTF = FileKind("RTF document", advice=_PANDOC)
WARC = FileKind(
    "WARC archive of web pages",
    advice="Extract the text of its pages first, for example with trafilatura or datatrove." + AS_TEXT_ADVICE,
)
CPIO = FileKind("cpio archive", advice=convert_advice("cpio -idm < {path}", "Unpack it first"))
LFS_POINTER = FileKind(
    "Git LFS pointer", advice="It stands for a file that was not downloaded. Fetch that, for example with: git lfs pull"
)
# More of the first bytes of kinds that begin with letters, since plain text may begin with the same letters.
TEXTUAL = {
    PDF: re.compile(rb"%PDF-\d\.\d[^\S\r\n]*+[\r\n].{0,1000}?(?:\d \d obj|[\x80-\xff]{4})", re.DOTALL),
    POSTSCRIPT: re.compile(rb"%!PS(?:-Adobe-\d[^\r\n]*|\s*)[\r\n]"),
    RTF: re.compile(rb"\{\\rtf\d?\\"),
    WARC: re.compile(rb"WARC/\d\.\d\r?\n"),
    CPIO: re.compile(rb"0707(?:0[12][0-9A-Fa-f]{104}|07[0-7]{70})"),
    LFS_POINTER: re.compile(rb"version https://git-lfs\.github\.com/spec/v\d\r?\n(.*\n)*?oid sha256:"),
}
EPUB = FileKind("EPUB book", advice=_PANDOC)
IWORK = FileKind("document of Apple's iWork", advice="Export it as plain text or CSV in the program that wrote it.")
JAR = FileKind("Java or Android program")
NPZ = FileKind("NPZ file of NumPy arrays", advice=_SHARDS + " Save each array as a .npy file.")
TORCH = FileKind("PyTorch checkpoint", advice=_WEIGHTS)
PICKLE = FileKind("Python pickle", advice="Pickles may run code when they are opened. Save the texts as JSON lines.")
NUMPY = FileKind("NumPy array", advice="Token ids in .npy files are trained on with data=shards data.path=FOLDER.")
LLMC = FileKind("shard of token ids of llm.c", advice=_SHARDS)
MEGATRON = FileKind(
    "index of token ids of Megatron-LM", advice="Its tokens cannot be read here. Prepare the text that they were made from."
)
LITDATA = FileKind("chunk of LitData", advice=MEGATRON.advice)
_TABLE = convert_advice(
    "python -c \"import pandas, sys; pandas.read_{reader}(sys.argv[1]).to_parquet('table.parquet')\" {path}",
    "Convert it to Parquet first",
)
MATLAB = FileKind("MATLAB file", advice="Save its texts as JSON lines first.")
STATA, SAS, SPSS = (
    FileKind(f"{name} table", advice=_TABLE.replace("{reader}", name.lower())) for name in ("Stata", "SAS", "SPSS")
)
R_DATA = FileKind(
    "file of R objects",
    advice=convert_advice("jsonlite::stream_out(data.frame(text = x), file('texts.jsonl'))", "Export the texts in R first"),
)
CTRANSLATE2 = FileKind("CTranslate2 model", advice=NO_WEIGHTS)
TENSORRT = FileKind("TensorRT engine", advice=NO_WEIGHTS)
GGML = FileKind("GGML file of weights", advice=NO_WEIGHTS)
FEATHER = FileKind("Feather table", advice=_TABLE.replace("{reader}", "feather"))
PARQUET_SUMMARY = FileKind("list of the parts of a Parquet table", advice="Give the folder, or the parts themselves.")
ARROW = FileKind("Arrow file", advice="If the package datasets wrote its folder: gpt-pretrain prepare dataset=FOLDER out=CORPUS.")

# The first bytes of files that are not plain text: offset, bytes, kind.
SIGNATURES: tuple[tuple[int, bytes, FileKind], ...] = (
    (0, b"\x1f\x8b\x08", FileKind("gzip file", "gz")),
    (0, b"BZh", FileKind("bzip2 file", "bz2")),
    (0, b"\xfd7zXZ\0", FileKind("xz file", "xz")),
    (0, b"\x28\xb5\x2f\xfd", FileKind("zstandard file", "zst")),
    (1, b"\x2a\x4d\x18", FileKind("zstandard file", "zst")),  # a frame to skip; its first byte is 0x50 to 0x5f
    (0, b"PK\x03\x04", ZIP),
    (0, b"PK\x05\x06", ZIP),
    (0, b"PK\x07\x08", PART_OF_ZIP),
    (257, b"ustar", TAR),
    (0, b"PAR1", FileKind("Parquet table", PARQUET)),
    (0, b"PARE", FileKind("encrypted Parquet table", advice="Write it again without encryption.")),
    *((0, magic, CPIO) for magic in (b"070701", b"070702", b"070707", b"\xc7\x71")),
    (0, b"7z\xbc\xaf\x27\x1c", FileKind("7z archive", advice=convert_advice("7z x {path}", "Unpack it first"))),
    (0, b"Rar!\x1a\x07", FileKind("RAR archive", advice=convert_advice("unrar x {path}", "Unpack it first"))),
    (0, b"\x04\x22\x4d\x18", FileKind("LZ4 file", advice=convert_advice("lz4 -d {path}", "Decompress it first"))),
    (0, b"\x1f\x9d", FileKind("file of the program compress", advice=convert_advice("gzip -d {path}", "Decompress it first"))),
    (0, b"LZIP", FileKind("lzip file", advice=convert_advice("lzip -d {path}", "Decompress it first"))),
    (0, b"\xff\xd8\xff", FileKind("JPEG image", advice=PICTURE_ADVICE)),
    (0, b"\x89PNG", FileKind("PNG image", advice=PICTURE_ADVICE)),
    (0, b"GIF87a", FileKind("GIF image", advice=PICTURE_ADVICE)),
    (0, b"GIF89a", FileKind("GIF image", advice=PICTURE_ADVICE)),
    (0, b"II*\0", FileKind("TIFF image", advice=PICTURE_ADVICE)),
    (0, b"MM\0*", FileKind("TIFF image", advice=PICTURE_ADVICE)),
    (0, b"8BPS", FileKind("Photoshop image", advice=PICTURE_ADVICE)),
    (0, b"AT&TFORM", FileKind("DjVu document", advice=convert_advice("djvutxt {path} text.txt"))),
    (0, b"ID3", FileKind("MP3 recording", advice=MEDIA_ADVICE)),
    (0, b"OggS", FileKind("Ogg recording", advice=MEDIA_ADVICE)),
    (0, b"fLaC", FileKind("FLAC recording", advice=MEDIA_ADVICE)),
    (0, b"MThd", FileKind("MIDI file", advice=MEDIA_ADVICE)),
    (0, b"\x1a\x45\xdf\xa3", FileKind("Matroska video", advice=MEDIA_ADVICE)),
    (0, b"%PDF-", PDF),
    (0, b"%!PS", POSTSCRIPT),
    (0, b"{\\rtf", RTF),
    (0, b"WARC/", WARC),
    (0, b"version https://git-lfs.github.com/spec/", LFS_POINTER),
    (
        0,
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
        FileKind("document of an old Office program", advice=_OFFICE.replace("{target}", "pdf")),
    ),
    (0, b"\x93NUMPY", NUMPY),
    (0, b"MMIDIDX\0\0", MEGATRON),
    (0, b"TNTIDX\0\0", MEGATRON),
    (0, b"LITPKDS", FileKind("shard of token ids of Lit-GPT", advice=MEGATRON.advice)),
    (0, struct.pack("<i", 20240520), LLMC),
    (0, struct.pack("<i", 20240801), LLMC),
    (
        0,
        b"GGUF",
        FileKind("GGUF file of weights", advice=NO_WEIGHTS),
    ),
    *((0, magic, GGML) for magic in (b"lmgg", b"fmgg", b"tjgg")),  # "ggml", "ggmf" and "ggjt" with reversed bytes
    # After the version and the length of the name.
    *(
        (6, name, CTRANSLATE2)
        for name in (b"TransformerSpec\0", b"TransformerDecoderModelSpec\0", b"TransformerEncoderModelSpec\0")
    ),
    *((0, magic, TENSORRT) for magic in (b"ftrt", b"ptrt")),
    (0, b"24ka", FileKind("model of llama2.c", advice=NO_WEIGHTS)),
    (4, b"ET12", FileKind("ExecuTorch program", advice=NO_WEIGHTS)),
    (4, b"TFL3", FileKind("TensorFlow Lite model", advice=NO_WEIGHTS)),
    (0, b"!<arch>\n", FileKind("library or Debian package", advice="Its parts are not text.")),
    (0, b"MATLAB 5.0 MAT-file", MATLAB),
    (0, b"$FL2@(#)", SPSS),
    (0, b"<stata_dta>", STATA),
    *((0, b"RD" + form, R_DATA) for form in (b"A2\n", b"A3\n", b"X2\n", b"X3\n")),
    (0, b"ARROW1", ARROW),
    (8, b"\x10\0\0\0", ARROW),  # After four bytes 0xff and the size of the schema.
    (0, b"FEA1", FEATHER),
    (0, b".snd\0", FileKind("AU recording", advice=MEDIA_ADVICE)),
    (0, b"\x76\x2f\x31\x01", FileKind("EXR image", advice=PICTURE_ADVICE)),
    (0, b"\xde\x12\x04\x95", FileKind("catalog of translated messages")),
    (0, b"\x95\x04\x12\xde", FileKind("catalog of translated messages")),
    (0, b"ORC", FileKind("ORC table", advice=_TABLE.replace("{reader}", "orc"))),
    (0, b"Obj\x01", FileKind("Avro file", advice="Convert it to JSON lines or Parquet first.")),
    (0, b"\x89HDF\r\n", FileKind("HDF5 file", advice=_TABLE.replace("{reader}", "hdf"))),
    (
        0,
        b"SQLite format 3\0",
        FileKind(
            "SQLite database",
            advice=convert_advice(
                "sqlite3 -csv -header {path} 'SELECT text FROM documents' > texts.csv", "Export the texts first"
            ),
        ),
    ),
    (60, b"BOOKMOBI", FileKind("Kindle book", advice=convert_advice("ebook-convert {path} text.txt"))),
    (60, b"TEXtREAd", FileKind("Palm book", advice=convert_advice("ebook-convert {path} text.txt"))),
    (0, b"ITSF", FileKind("compiled HTML help", advice=convert_advice("7z x {path}", "Unpack its pages first"))),
    (
        0,
        b"ZIM\x04",
        FileKind("ZIM archive of a wiki", advice=convert_advice("zimdump dump --dir=PAGES {path}", "Unpack it first")),
    ),
    (0, b"MSCF\0\0\0\0", FileKind("cabinet archive", advice=convert_advice("7z x {path}", "Unpack it first"))),
    (0, b"\xff\x06\0\0sNaPpY", FileKind("Snappy file", advice=convert_advice("snzip -d {path}", "Decompress it first"))),
    (0, b"\x7fELF", FileKind("program")),
    (0, b"\xcf\xfa\xed\xfe", FileKind("program")),
    (0, b"\xca\xfe\xba\xbe", FileKind("program")),
    (0, b"\0asm", FileKind("program")),
    (0, b"wOFF", FileKind("font")),
    (0, b"wOF2", FileKind("font")),
    (0, b"OTTO", FileKind("font")),
)
# Kinds that are recognized by the name, since the bytes do not identify them.
COMPRESSED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".lzma", ".gzip", ".zstd", ".z")
TOKEN_SUFFIXES = (".bin", ".npy", ".idx", ".ds", ".tok", ".tokens", ".u16", ".uint16")
SUFFIXES: dict[str, FileKind] = {
    **dict.fromkeys((".jsonl", ".ndjson", ".jsonlines", ".json"), JSON_LINES),
    **dict.fromkeys((".csv", ".tsv", ".tab", ".psv"), CSV),
    **dict.fromkeys((".html", ".htm", ".xhtml"), HTML),
    **dict.fromkeys((".mht", ".mhtml"), MHTML),
    ".ipynb": NOTEBOOK,
    **dict.fromkeys((".xml", ".svg", ".xsl", ".rss", ".atom", ".plist", ".kml", ".gpx"), XML),
    **dict.fromkeys((".pkl", ".pickle", ".joblib"), PICKLE),
    **dict.fromkeys(
        (".tfrecord", ".tfrecords"),
        FileKind("TFRecord file", advice=_SHARDS.replace("are trained", "of other programs are trained")),
    ),
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".ptl"), TORCH),
    ".onnx": FileKind("ONNX model", advice=NO_WEIGHTS),
    **dict.fromkeys((".pb", ".pbtxt"), FileKind("TensorFlow graph", advice=NO_WEIGHTS)),
    ".mlmodel": FileKind("Core ML model", advice=NO_WEIGHTS),
    ".model": FileKind("SentencePiece vocabulary", advice="Vocabularies are given with tokenizer={path}."),
    ".mat": MATLAB,
    ".dta": STATA,
    **dict.fromkeys((".sas7bdat", ".xpt"), SAS),
    **dict.fromkeys((".rds", ".rda", ".rdata"), R_DATA),
    **dict.fromkeys((".mp3", ".m4a", ".aac", ".opus", ".wma", ".amr"), RECORDING),
    **dict.fromkeys((".mpg", ".mpeg", ".wmv", ".flv", ".mov", ".avi", ".webm", ".mkv"), VIDEO),
    ".msgpack": FileKind("msgpack file, such as weights of Flax", advice=NO_WEIGHTS),
    ".keras": FileKind("Keras model", advice=NO_WEIGHTS),
    ".mds": FileKind("MDS shard of MosaicML Streaming", advice="Save its texts as JSON lines first."),
    ".lzma": FileKind("LZMA file", "xz"),
    ".safetensors": FileKind("safetensors file of weights", advice=_WEIGHTS),
    **dict.fromkeys((".ico", ".cur"), FileKind("icon", advice=PICTURE_ADVICE)),
    **dict.fromkeys((".ttf", ".otf"), FileKind("font")),
    ".pyc": FileKind("program"),
    ".dll": FileKind("program"),
    ".exe": FileKind("program"),
    ".br": FileKind("Brotli file", advice=convert_advice("brotli -d {path}", "Decompress it first")),
    ".docx": WORD,
    ".doc": WORD,
    ".odt": WORD,
    ".xlsx": SHEET,
    ".xls": SHEET,
    ".ods": SHEET,
    ".pptx": SLIDES,
    ".odp": SLIDES,
    ".epub": EPUB,
    ".jar": JAR,
    ".apk": JAR,
    ".npz": NPZ,
    ".ppt": SLIDES,
}
