"""Files are opened and written in few places: `foura.untrusted` and `foura.atomic`, and what stands below with its reason."""

# functions and methods that open, write, delete or list files; of libraries, those that read a folder by its name
CALLS: frozenset[str] = frozenset(
    ("open", "read_text", "read_bytes", "write_text", "write_bytes", "load_file", "safe_open")
)
CALLS |= {"save_file", "copyfile", "copytree", "copy2", "rmtree", "move", "replace_file", "glob", "rglob", "iterdir"}
CALLS |= {
    "scandir",
    "listdir",
    "walk",
    "from_pretrained",
    "load_dataset",
    "load_dataset_builder",
    "savefig",
    "read_csv",
}
CALLS |= {"read_table", "execv", "Popen", "read_parquet"}
# of these modules alone, because the names are common
QUALIFIED = {
    "json.load",
    "torch.load",
    "torch.save",
    "np.load",
    "np.save",
    "OmegaConf.load",
    "OmegaConf.save",
    "pickle.load",
}
QUALIFIED |= {
    "os.open",
    "os.replace",
    "os.rename",
    "gzip.open",
    "shutil.copy",
    "yaml.load",
    "Image.open",
    "subprocess.run",
}
DOOR = ("foura.untrusted", "foura.atomic")
# {module: {call: why it is not through the door}}
FOUND_BEFORE = "its path has been through the door"
OURS = "files of this package, or of the standard library"
WRITTEN = "within `atomic.replacing` or `atomic.new_folder`"
ALLOWED: dict[str, dict[str, str]] = {}
