"Installation of ukbmm; every value comes from settings.ini, which nbdev reads too."

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

config = ConfigParser(delimiters=["="])
config.read("settings.ini", encoding="utf-8")
settings = config["DEFAULT"]


def words(key: str) -> list[str]:
    return settings.get(key, "").split()


setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    author_email=settings["author_email"],
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    url=settings["git_url"],
    keywords=settings["keywords"],
    packages=find_packages(include=["ukbmm", "ukbmm.*"]),
    package_data={"ukbmm": ["py.typed", "biobank/schema/*", "biobank/templates/*", "workflow/templates/*"]},
    python_requires=f">={settings['min_python']}",
    install_requires=words("requirements"),
    extras_require={
        extra: words(f"{extra}_requirements")
        for extra in ("imaging", "tensorboard", "mlflow", "wandb", "dev", "docs")
    },
    entry_points={
        "console_scripts": words("console_scripts"),
        "nbdev": [f"{settings['lib_name']}={settings['lib_name']}._modidx:d"],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: Apache Software License",
        *[f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)],
        "Topic :: Scientific/Engineering :: Bio-Informatics",
    ],
    zip_safe=False,
)
