"""Installs the node where `ros2 run` and `ros2 launch` look for it."""

from glob import glob

from setuptools import find_packages, setup

NAME = "mate_edge_ros"

setup(
    name=NAME,
    version="0.1.0",
    packages=find_packages(),
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", glob("launch/*.launch.py")),
    ],
    install_requires=["setuptools"],
    zip_safe=True,
    maintainer="mate-edge maintainers",
    maintainer_email="maintainers@mate-edge.example",
    description="Classifies camera images within a deadline, with a mate-edge bundle.",
    license="Apache-2.0",
    entry_points={"console_scripts": [f"classifier = {NAME}.node:main"]},
)
