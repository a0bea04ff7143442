"""One file per method: title, equation, citation, module, one decorator.

Adding a file here is all it takes to add a method: the registry imports every module of this
package, and the contract tests run against whatever is registered.
"""
